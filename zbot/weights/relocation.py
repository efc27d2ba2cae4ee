"""Moves a fetched model to another disk: copies, verifies, and only then switches."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from zbot.errors import WeightsError
from zbot.weights.cache import (
    Origin,
    Place,
    aside,
    check_cache_root,
    find_place,
    is_absent,
    models_directory,
    require_space,
    working_on,
)
from zbot.weights.location import ModelFiles, locate, locate_original
from zbot.weights.manifest import RECORD_NAME, read_record, sync_directory
from zbot.weights.verification import OnProgress, Progress, check_files, ignore_progress

_CHUNK_BYTES = 8 * 1024 * 1024


def move(
    model: str, cache_root: Path, destination: Path, on_progress: OnProgress = ignore_progress
) -> ModelFiles:
    """Move all a cache holds of one model under another cache root and return where it is loaded from now.

    A link stays behind in `cache_root`, so nothing else need be changed; setting the cache root to
    `destination` later works as well. Until the copy has been verified the old files are untouched and stay
    in use.

    Raises: WeightsError when there is nothing to move, no room for it, or the copy is not equal.
    """
    place = find_place(model, cache_root)
    if place.origin is not Origin.HUB:
        raise WeightsError(f"{model} is not in the cache ({place.directory}); only fetched models are moved.")
    target_root = check_cache_root(destination)
    if is_absent(place):
        locate_original(place)
    with working_on(place, "move"):
        target = models_directory(target_root) / place.home.name
        source = place.home.resolve()
        if target.exists() and target.resolve() == source and not target.is_symlink():
            raise WeightsError(f"{model} is already in {target}; name another directory.")
        if os.path.lexists(target) and not (target == place.home and target.is_symlink()):
            raise WeightsError(
                f"{target} holds a copy of {model} already; delete it, or set the cache directory to "
                f"{target_root}."
            )
        try:
            _copy(place, source, target, on_progress)
            _switch(place.home, source, target)
        except OSError as error:
            raise WeightsError(
                f"{model} was not moved to {target} ({error.strerror}): it is still read from where it was; "
                "mend that and run `python -m zbot weights move` again."
            ) from error
    return locate(model, cache_root)


def _copy(place: Place, source: Path, target: Path, on_progress: OnProgress) -> None:
    staging = target.with_name(f"{target.name}.incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        files = sorted(path for path in source.rglob("*") if path.is_file())
        require_space(staging, _disk_bytes(files), "move")
        _copy_files(files, source, staging, on_progress)
        for directory in sorted({path.parent for path in files if path.name == RECORD_NAME}):
            copied = staging / directory.relative_to(source)
            record = read_record(copied)
            if record is None:
                continue
            # A file that was damaged or missing before may be so now; one that was right must have stayed so.
            wrong = set(record.damaged) | {
                file.path for file in record.files if not (directory / file.path).is_file()
            }
            problems = check_files(
                copied, [file for file in record.files if file.path not in wrong], on_progress
            )
            if problems and record.complete:
                raise WeightsError(
                    f"{problems[0]} in the copy of {place.model}, so it was not moved; run `python -m zbot "
                    "weights verify` and check the disk you move to."
                )
        if target.is_symlink():  # it pointed to what is being moved back here
            target.unlink()
        staging.rename(target)
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _disk_bytes(files: Sequence[Path]) -> int:
    sizes = {(info.st_dev, info.st_ino): info.st_size for info in map(os.stat, files)}
    return sum(sizes.values())


def _copy_files(files: Sequence[Path], source: Path, staging: Path, on_progress: OnProgress) -> None:
    total_bytes, done_bytes = _disk_bytes(files), 0
    copies: dict[tuple[int, int], Path] = {}
    for path in files:
        name = path.relative_to(source)
        copy = staging / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        info = path.stat()
        known = copies.setdefault((info.st_dev, info.st_ino), copy)
        if known != copy:  # the bf16 copy shares files with the original; keep it so
            os.link(known, copy)
            continue
        with path.open("rb") as reader, copy.open("wb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                writer.write(chunk)
                done_bytes += len(chunk)
                on_progress(
                    Progress(action="move", path=str(name), done_bytes=done_bytes, total_bytes=total_bytes)
                )
            writer.flush()
            os.fsync(writer.fileno())
            if hasattr(os, "posix_fadvise"):
                # Let verification read what the disk holds, not what memory remembers.
                os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _switch(home: Path, source: Path, target: Path) -> None:
    """Let the name in the cache mean the copy, then delete the old files; `working_on` ends this after a crash."""
    if home == target:
        shutil.rmtree(source)  # moved back to where the link was
        return
    link = home.with_name(f"{home.name}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)
    if home.is_symlink():
        link.replace(home)
        shutil.rmtree(source)
        return
    old = aside(home)
    home.rename(old)
    link.replace(home)
    sync_directory(home.parent)
    shutil.rmtree(old)
