import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zbot.datadir import locked
from zbot.errors import ConfigError

_HOLD = """
import sys
from pathlib import Path
from zbot.datadir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(directory: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path):
    with locked(tmp_path / "some" / "data") as directory:
        for path in (directory, directory / "images"):
            assert path.stat().st_mode & 0o777 == 0o700
        assert (directory / "zbot.lock").stat().st_mode & 0o777 == 0o600


def test_a_second_bot_on_one_directory_is_refused_at_once(tmp_path: Path):
    with hold(tmp_path) as process:
        with pytest.raises(ConfigError, match="Another zbot") as caught, locked(tmp_path):
            pass
        assert str(tmp_path) in str(caught.value)
        process.communicate()
    with locked(tmp_path):
        pass


def test_kill_9_frees_the_directory(tmp_path: Path):
    with hold(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with locked(tmp_path):
        pass


def test_the_lock_ends_with_the_block_also_when_it_raises(tmp_path: Path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("obstacle", ["file", "child of a file", "read-only"])
def test_a_place_that_cannot_hold_data_is_named_with_the_repair(tmp_path: Path, obstacle: str):
    directory = tmp_path / "data"
    if obstacle == "read-only":
        if os.geteuid() == 0:
            pytest.skip("the administrator may write everywhere")
        directory.mkdir(mode=0o500)
    else:
        directory.write_text("")
        directory = directory / "deeper" if obstacle.startswith("child") else directory
    with pytest.raises(ConfigError, match="ZBOT_DATA_DIR") as caught, locked(directory):
        pass
    assert str(directory) in str(caught.value)


def test_the_lock_is_not_inherited_by_the_engines_process(tmp_path: Path):
    with locked(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
        assert child.stdout is not None and child.stdout.readline() == b"\n"
    with locked(tmp_path):
        pass
    child.communicate(b"\n")
