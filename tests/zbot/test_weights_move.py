"""Moving a fetched model: copied, verified, and only then switched; nothing is lost at any point."""

import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.hub import Hub, read_pipeline, read_tree
from zbot import weights
from zbot.errors import WeightsError
from zbot.weights import cache, relocation

TINY = Path(weights.__file__).parent.parent / "models" / "tiny"
MODEL = "tests/tiny-z-image"
HOME = "modelscope/models/tests--tiny-z-image"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def environment() -> Generator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache with a fetched model, and what looks like its bf16 copy: files shared by hard links."""
    directory = tmp_path / "old"
    directory.mkdir()
    with Hub(model=MODEL, files=read_pipeline(TINY)).serving() as url:
        os.environ["MODELSCOPE_ENDPOINT"] = url
        snapshot = weights.fetch(MODEL, directory).directory
    shutil.copytree(snapshot, directory / HOME / "bf16/master", copy_function=os.link)
    return directory


@pytest.fixture
def other_disk(tmp_path: Path) -> Generator[Path]:
    directory = tmp_path / "new"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield directory
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_moved_model_is_found_through_the_old_root_and_through_the_new(
    root: Path, other_disk: Path
) -> None:
    before = read_tree((root / HOME).resolve())
    revision = weights.locate(MODEL, root).revision
    seen: list[weights.Progress] = []
    files = weights.move(MODEL, root, other_disk, seen.append)
    assert files == weights.locate(MODEL, root)
    assert files.revision == revision == weights.locate(MODEL, other_disk).revision
    assert (root / HOME).is_symlink()
    assert (root / HOME).readlink() == other_disk / HOME
    assert read_tree(other_disk / HOME) == before
    assert (other_disk / HOME / "bf16/master" / VAE).samefile(other_disk / HOME / "snapshots/master" / VAE)
    copied = [progress for progress in seen if progress.action == "move"]
    assert copied[-1].done_bytes == copied[-1].total_bytes < sum(map(len, before.values()))
    assert {progress.action for progress in seen} == {"move", "verify"}
    assert sorted(path.name for path in (root / HOME).parent.iterdir() if not path.name.startswith(".")) == [
        "tests--tiny-z-image"
    ]


def test_a_model_can_be_moved_on_and_back(root: Path, tmp_path: Path) -> None:
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
        weights.move(MODEL, root, tmp_path / name)
    assert not (tmp_path / "second" / HOME).exists()
    weights.move(MODEL, root, root)
    assert not (root / HOME).is_symlink()
    assert not (tmp_path / "third" / HOME).exists()
    weights.locate(MODEL, root)
    with pytest.raises(WeightsError, match="is already in"):
        weights.move(MODEL, root, root)


def test_a_copy_that_is_not_equal_is_thrown_away(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = relocation._copy_files

    def damage(files: list[Path], source: Path, staging: Path, on_progress: weights.OnProgress) -> None:
        right(files, source, staging, on_progress)
        with (staging / "snapshots/master" / VAE).open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x55")

    monkeypatch.setattr(relocation, "_copy_files", damage)
    (tmp_path / "new").mkdir()
    with pytest.raises(WeightsError, match=rf"{VAE} is damaged .* in the copy .* so it was not moved"):
        weights.move(MODEL, root, tmp_path / "new")
    assert list((tmp_path / "new/modelscope/models").iterdir()) == []
    assert not (root / HOME).is_symlink()
    assert [found.problems for found in weights.verify(MODEL, root)] == [(), ()]


@pytest.mark.parametrize("moment", ["before the switch", "after the switch"])
def test_a_move_that_was_killed_is_ended_by_the_next_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Killed(BaseException):
        pass

    def die(self: Path, *arguments: object) -> None:
        raise Killed

    (tmp_path / "new").mkdir()
    with monkeypatch.context() as patch:
        if moment == "before the switch":
            patch.setattr(Path, "replace", die)
        else:
            patch.setattr(shutil, "rmtree", lambda *arguments, **options: die(Path()))
        with pytest.raises(Killed):
            weights.move(MODEL, root, tmp_path / "new")
    if moment == "before the switch":
        with pytest.raises(WeightsError, match=r"A move of .* was interrupted; run .*verify`, which ends it"):
            weights.locate(MODEL, root)
    else:
        weights.locate(MODEL, root)
    assert [found.problems for found in weights.verify(MODEL, root)] == [(), ()]
    weights.locate(MODEL, root)
    assert not cache.aside(root / HOME).exists()


def test_too_small_a_disk_is_refused_and_nothing_is_left_on_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    monkeypatch.setattr(cache, "free_bytes", lambda directory: 10_000_000)
    with pytest.raises(WeightsError, match="`weights move` needs"):
        weights.move(MODEL, root, tmp_path / "new")
    assert list((tmp_path / "new/modelscope/models").iterdir()) == []
    weights.locate(MODEL, root)


def test_a_disk_that_is_not_mounted_any_more_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    weights.move(MODEL, root, tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "unplugged")
    says = rf"was moved to {tmp_path}/new/.*, which is not there; mount that disk"
    for command in (weights.locate, weights.verify, weights.convert, weights.fetch):
        with pytest.raises(WeightsError, match=says):
            command(MODEL, root)
    (tmp_path / "unplugged").rename(tmp_path / "new")
    weights.locate(MODEL, root)


def test_an_existing_copy_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "new")
    with pytest.raises(WeightsError, match="holds a copy of tests/tiny-z-image already"):
        weights.move(MODEL, root, tmp_path / "new")


@pytest.mark.parametrize("model", ["tiny", str(TINY)])
def test_only_fetched_models_are_moved(tmp_path: Path, model: str) -> None:
    with pytest.raises(WeightsError, match="only fetched models are moved"):
        weights.move(model, tmp_path, tmp_path / "new")
