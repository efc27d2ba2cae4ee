"""The one cache root, what `locate` finds in it, and the three traps users of the model report again and again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.hub import Hub, read_pipeline
from zbot import weights
from zbot.errors import WeightsError

TINY = Path(weights.__file__).parent.parent / "models" / "tiny"
REPOSITORY = TINY.parents[2]
MODEL = "tests/tiny-z-image"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def environment() -> Generator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(TINY, directory)
    return directory


def run_python(code: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_tiny_is_found_without_a_cache(tmp_path: Path) -> None:
    files = weights.locate("tiny", tmp_path / "nowhere")
    assert files.directory == TINY
    assert files.dtype == "bfloat16"
    assert files.size_bytes == sum(map(len, read_pipeline(TINY).values()))
    assert files.revision == weights.locate("tiny", tmp_path).revision


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, zbot.weights\n"
        "heavy = {'torch', 'numpy', 'modelscope', 'modelscope_hub', 'requests', 'diffusers', 'huggingface_hub'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert run_python(code, cwd=tmp_path).stdout.strip() == "[]"


# --- the environment -------------------------------------------------------------------------------------------------


def test_trap_two_caches_that_disagree_become_one(tmp_path: Path) -> None:
    """Whatever the shell says, both libraries end under the one root."""
    root = tmp_path / "root"
    code = (
        "import sys; from pathlib import Path; from zbot import weights\n"
        "weights.prepare_environment(Path(sys.argv[1]))\n"
        "import huggingface_hub.constants as hf, modelscope_hub\n"
        "config = modelscope_hub.get_default_config()\n"
        "print(hf.HF_HOME, hf.HF_HUB_CACHE, hf.HF_ASSETS_CACHE, config.cache_dir, config.config_dir, sep='\\n')\n"
        "assert hf.HF_HUB_OFFLINE and hf.HF_HUB_DISABLE_TELEMETRY"
    )
    stray = ("MODELSCOPE_CACHE", "MODELSCOPE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_ASSETS_CACHE")
    stray += ("HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "MS_CACHE_HOME", "MODELSCOPE_CREDENTIALS_PATH")
    done = run_python(code, str(root), cwd=tmp_path, **{name: str(tmp_path / name.lower()) for name in stray})
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(root), line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


def test_trap_a_second_cache_is_named_and_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole copy in ModelScope's old default cache does not make our half one whole, and is pointed out."""
    home, root = tmp_path / "home", tmp_path / "root"
    old = home / ".cache/modelscope/hub/models/tests/tiny-z-image"
    shutil.copytree(TINY, old)
    outer = tmp_path / "outer"
    shutil.copytree(TINY, outer / "models/tests--tiny-z-image/snapshots/master")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(outer))
    weights.prepare_environment(root)
    with pytest.raises(WeightsError, match=r"not in the cache .*weights fetch.*Another copy lies in "):
        weights.locate(MODEL, root)
    assert set(weights.status(MODEL, root).other_copies) == {
        old,
        outer / "models/tests--tiny-z-image/snapshots/master",
    }


def test_trap_a_relative_path_that_a_restart_empties_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: weights.prepare_environment(Path("models")),
        lambda: weights.locate(MODEL, Path("models")),
        lambda: weights.fetch(MODEL, Path("models")),
        lambda: weights.locate("./models", tmp_path),
    ):
        with pytest.raises(WeightsError, match=rf"relative path.*restart.*{tmp_path}/models"):
            call()
    assert list((tmp_path / "models").iterdir()) == []


def test_the_last_directory_of_the_root_is_made_and_a_missing_disk_is_named(tmp_path: Path) -> None:
    weights.prepare_environment(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(
        WeightsError, match=r"is missing and so is .*disk; if|mount that disk, else run `mkdir -p"
    ):
        weights.prepare_environment(tmp_path / "unmounted" / "cache")
    assert not (tmp_path / "unmounted").exists()


def test_a_file_in_the_roots_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(WeightsError, match="is a file; move it away"):
        weights.prepare_environment(tmp_path / "cache")


def test_a_link_into_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").symlink_to("/mnt/gone")
    with pytest.raises(WeightsError, match="is a link to /mnt/gone, which is not there; mount"):
        weights.prepare_environment(tmp_path / "cache")


def test_a_read_only_root_is_named(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(0o555)
    code = (
        "import os, sys; from pathlib import Path; from zbot import weights\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"  # root may write everywhere
        "try: weights.prepare_environment(Path(sys.argv[1]))\n"
        "except weights.cache.WeightsError as error: print(error)"
    )
    for directory in (tmp_path, *tmp_path.parents):  # let the other account come as far as the root
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    done = run_python(code, str(root), cwd=Path("/"))
    assert "cannot be written to (Permission denied); mount it writable, or run `chown -R" in done.stdout, (
        done
    )
    assert "\n" not in done.stdout.strip()


# --- a directory of one's own ----------------------------------------------------------------------------------------


def test_a_directory_of_ones_own_is_found_and_told_apart_from_another(model: Path, tmp_path: Path) -> None:
    files = weights.locate(str(model), tmp_path)
    assert files.directory == model
    assert files.revision == weights.locate("tiny", tmp_path).revision
    with (model / VAE).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    assert weights.locate(str(model), tmp_path).revision != files.revision


# Which files a tokenizer has beside its configuration differs, and nothing in the directory says it.
NAMED_BY_THE_PIPELINE = sorted(
    path for path in read_pipeline(TINY) if not path.startswith("tokenizer/") or path.endswith("_config.json")
)


@pytest.mark.parametrize("path", NAMED_BY_THE_PIPELINE)
def test_every_file_that_is_missing_is_named(model: Path, tmp_path: Path, path: str) -> None:
    (model / path).unlink()
    name = path.rpartition("/")[2] if "safetensors" not in path else r"\*.safetensors"
    with pytest.raises(WeightsError, match=rf"{name} is missing; copy the model"):
        weights.locate(str(model), tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1000], r"it has [\d,]+ bytes where its head says"),
        (lambda data: data + b"x", r"it has [\d,]+ bytes where its head says"),
        (lambda data: data[:5], "it has only 5 bytes"),
        (lambda data: bytes(len(data)), "impossible|unreadable|bytes where"),
        (lambda data: b"<html>" + data[6:], "does not begin like a safetensors file"),
        (lambda data: data.replace(b'"shape":[', b'"shape":{', 1), "unreadable head"),
        (lambda data: data.replace(b'"BF16"', b'"BF61"', 1), "impossible"),
    ],
)
def test_a_damaged_head_or_length_is_found_at_every_start(
    model: Path, tmp_path: Path, damage: "object", says: str
) -> None:
    assert callable(damage)
    (model / VAE).write_bytes(damage((model / VAE).read_bytes()))
    with pytest.raises(WeightsError, match=rf"{VAE} is damaged \(.*({says})"):
        weights.locate(str(model), tmp_path)


def test_another_architecture_is_refused(model: Path, tmp_path: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(
        WeightsError, match="is a FluxPipeline and zbot draws with ZImagePipeline; set ZBOT_MODEL"
    ):
        weights.locate(str(model), tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "\udc80".encode("utf-8", "surrogateescape").decode("latin-1")]
)
def test_an_unreadable_index_is_named(model: Path, tmp_path: Path, text: str) -> None:
    (model / "model_index.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"model_index\.json is damaged"):
        weights.locate(str(model), tmp_path)


@pytest.mark.parametrize(
    "name", ["", "zimage", "a/b/c", "../x/y", "Tongyi-MAI/Z Image", "a/..", "https://x/y"]
)
def test_a_setting_that_names_nothing_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="ZBOT_MODEL="):
        weights.locate(name, tmp_path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no such directory; correct the setting"):
        weights.locate(str(tmp_path / "absent"), tmp_path)


# --- the record ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    weights.prepare_environment(root)
    with Hub(model=MODEL, files=read_pipeline(TINY)).serving() as url:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
        weights.fetch(MODEL, root)
    return root


def test_a_file_that_vanishes_or_shrinks_after_the_fetch_is_named(fetched: Path) -> None:
    directory = weights.locate(MODEL, fetched).directory
    with (directory / VAE).open("r+b") as stream:
        stream.truncate(1_000_000)
    (directory / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(
        WeightsError,
        match=r"tokenizer.json is missing; vae/.* is short \(1,000,000 of [\d,]+ bytes\); run .*weights fetch",
    ):
        weights.locate(MODEL, fetched)
    status = weights.status(MODEL, fetched)
    assert (status.original.state, status.serving) == ("damaged", None)
    assert status.original.files_present == status.original.files_expected - 2


def test_a_vanished_cache_is_named(fetched: Path) -> None:
    shutil.rmtree(fetched / "modelscope")
    with pytest.raises(WeightsError, match=r"is not in the cache .*run `python -m zbot weights fetch`"):
        weights.locate(MODEL, fetched)
    assert weights.status(MODEL, fetched).original.state == "absent"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 99}', "null", '{"format":1,"files":[{"path":"../x","bytes":1}]}']
)
def test_an_unreadable_record_is_named_with_its_repair(fetched: Path, text: str) -> None:
    directory = weights.locate(MODEL, fetched).directory
    (directory / "zbot.json").write_text(text)
    with pytest.raises(
        WeightsError, match=r"zbot.json is not a record .*; delete that one file and run .*verify"
    ):
        weights.locate(MODEL, fetched)


def test_locate_writes_nothing_and_status_neither(fetched: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in fetched.rglob("*")}
    weights.locate(MODEL, fetched)
    weights.status(MODEL, fetched)
    assert {path: path.stat().st_mtime_ns for path in fetched.rglob("*")} == before


def test_status_of_a_whole_model_says_so(fetched: Path) -> None:
    status = weights.status(MODEL, fetched)
    assert status.original.state == "whole"
    assert status.original.present_bytes == status.original.expected_bytes
    assert status.converted is None
    assert status.serving == weights.locate(MODEL, fetched)
