"""`python -m zbot weights …` as a person meets it: what is printed, where, and the exit code."""

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.hub import IMPATIENT_CLIENT, Fault, Hub, read_pipeline
from zbot import weights
from zbot.cli.weights import app

TINY = Path(weights.__file__).parent.parent / "models" / "tiny"
MODEL = "tests/tiny-z-image"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    os.environ.update(IMPATIENT_CLIENT | {"ZBOT_MODEL": MODEL, "ZBOT_CACHE_DIR": str(tmp_path / "cache")})
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def hub() -> Generator[Hub]:
    served = Hub(model=MODEL, files=read_pipeline(TINY))
    with served.serving() as url:
        os.environ["MODELSCOPE_ENDPOINT"] = url
        yield served


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_fetch_status_path_and_verify_say_what_is_there(hub: Hub, tmp_path: Path) -> None:
    directory = tmp_path / "cache/modelscope/models/tests--tiny-z-image/snapshots/master"
    fetched = run("fetch")
    assert fetched.exit_code == 0, fetched.output
    assert f"{directory} ({MODEL}, revision {hub.commit}, bfloat16, 19.8 MB)" in fetched.stdout
    assert "fetch: 19.8 MB of 19.8 MB" in fetched.stderr
    assert run("path").stdout == f"{directory}\n"
    status = run("status")
    assert (status.exit_code, status.stderr) == (0, "")
    assert f"original: whole, 11 of 11 files, 19.8 MB of 19.8 MB, revision {hub.commit}" in status.stdout
    assert json.loads(run("status", "--json").stdout)["serving"]["revision"] == hub.commit
    verified = run("verify")
    assert verified.exit_code == 0
    assert f"{directory}: 11 files, 19.8 MB, all right, every checksum agrees" in verified.stdout


def test_verify_names_each_bad_file_and_the_command_that_mends_it(hub: Hub) -> None:
    run("fetch")
    directory = Path(run("path").stdout.strip())
    (directory / VAE).write_bytes(b"short")
    (directory / "transformer/config.json").unlink()
    found = run("verify")
    assert found.exit_code == 2
    assert f"{VAE} is short (5 of " in found.stderr
    assert "transformer/config.json is missing\n" in found.stderr
    assert found.stderr.splitlines()[-1].startswith(
        "2 of 11 files are not as they should be; run `python -m zbot"
    )
    assert run("fetch").exit_code == 0
    assert run("verify").exit_code == 0


@pytest.mark.parametrize("command", ["path", "status", "verify", "convert", "move"])
def test_a_model_that_is_not_there_is_one_sentence_and_exit_code_2(tmp_path: Path, command: str) -> None:
    (tmp_path / "new").mkdir()
    done = run(command, *(["new"] if command == "move" else []))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{MODEL} is not in the cache")
    assert "run `python -m zbot weights fetch`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_failed_fetch_is_one_sentence_and_exit_code_2(hub: Hub) -> None:
    hub.faults.append(Fault(VAE, times=99, status=404))
    done = run("fetch")
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert done.stderr.splitlines()[-1].startswith(
        f"one file of {MODEL} did not arrive ({VAE}: the hub lists it"
    )
    assert "only partly fetched" in run("status").stderr


def test_move_takes_a_directory_relative_to_where_one_stands(hub: Hub, tmp_path: Path) -> None:
    run("fetch")
    (tmp_path / "new").mkdir()
    done = run("move", "new")
    assert done.exit_code == 0, done.output
    assert "move: 19.8 MB of 19.8 MB" in done.stderr
    assert Path(run("path").stdout.strip()).resolve().is_relative_to(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ZBOT_CACHE_DIR", "cache", "is a relative path"),
        ("ZBOT_CACHE_DIR", "/proc/nothing/here", "is missing and so is /proc/nothing"),
        ("ZBOT_MODEL", "z image", "is neither `tiny`, nor an absolute path, nor a ModelScope id"),
        ("ZBOT_MAX_WAITING", "many", "ZBOT_MAX_WAITING: Input should be a valid integer"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    done = run("path")
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_tiny_model_needs_no_cache(tmp_path: Path) -> None:
    done = run("path", "--model", "tiny", "--cache-dir", str(tmp_path / "nowhere/at/all"))
    assert done.stdout == f"{TINY}\n"


def test_no_token_is_asked_for_and_the_default_cache_is_made(tmp_path: Path) -> None:
    del os.environ["ZBOT_CACHE_DIR"]
    os.environ["ZBOT_DATA_DIR"] = str(tmp_path / "data")
    os.environ.pop("DISCORD_TOKEN", None)
    done = run("path")
    assert done.stderr.startswith(f"{MODEL} is not in the cache ({tmp_path}/data/cache/")
