"""Says how the copies of a model on this machine stand, for people: what is whole, what is missing, what is loaded."""

from dataclasses import dataclass
from pathlib import Path

from zbot.errors import WeightsError
from zbot.weights.cache import Origin, Place, find_place, other_copies
from zbot.weights.check import Problem, check_shallow, partial_path, read_structure, size_of
from zbot.weights.location import ModelFiles, expected_files, locate
from zbot.weights.manifest import RECORD_NAME, read_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """How one copy of a model stands: `state` is whole, damaged, unfinished, unchecked or absent."""

    directory: Path
    state: str
    revision: str
    files_present: int
    files_expected: int
    present_bytes: int
    expected_bytes: int
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What `weights status` shows: both copies of a model, what would be loaded, and copies zbot does not read."""

    model: str
    original: Copy
    converted: Copy | None
    serving: ModelFiles | None
    other_copies: tuple[Path, ...]


def status(model: str, cache_root: Path) -> Status:
    """Say how both copies of a model stand, without a network and without changing anything.

    Raises: WeightsError only for a setting that names no place at all.
    """
    place = find_place(model, cache_root)
    try:
        serving = locate(model, cache_root)
    except WeightsError:
        serving = None
    converted = None if place.origin is Origin.PACKAGE else _status_of(place, place.converted)
    return Status(
        model=model,
        original=_status_of(place, place.directory),
        converted=converted if converted and converted.state != "absent" else None,
        serving=serving,
        other_copies=other_copies(place),
    )


def _status_of(place: Place, directory: Path) -> Copy:
    try:
        record = read_record(directory)
        is_original = directory == place.directory
        files = expected_files(place, record) if is_original else (record.files if record else ())
        problems = check_shallow(directory, files)
        if not files and is_original and (directory / "model_index.json").is_file():
            files, problems = read_structure(directory)
    except (WeightsError, OSError) as error:
        problem = Problem(path=RECORD_NAME, kind="damaged", detail=str(error))
        return Copy(
            directory=directory,
            state="damaged",
            revision="",
            files_present=0,
            files_expected=0,
            present_bytes=0,
            expected_bytes=0,
            problems=(problem,),
        )
    wrong = {problem.path for problem in problems} | set(record.damaged if record else ())
    whole = [file for file in files if file.path not in wrong]
    if record is not None and record.damaged:
        named = {problem.path for problem in problems}
        problems += tuple(Problem(path=path, kind="damaged") for path in record.damaged if path not in named)
    if not directory.is_dir() or not any(directory.iterdir()):
        state = "absent"
    elif record is None and place.origin is Origin.HUB:
        state = "unfinished" if problems or not files else "unchecked"
    elif record is not None and not record.complete:
        state = "unfinished"
    else:
        state = "damaged" if problems else "whole"
    partial_bytes = sum(
        size_of(partial_path(directory / file.path)) or 0 for file in files if file.path in wrong
    )
    return Copy(
        directory=directory,
        state=state,
        revision=record.revision if record else "",
        files_present=len(whole),
        files_expected=len(files),
        present_bytes=sum(file.size_bytes for file in whole) + partial_bytes,
        expected_bytes=sum(file.size_bytes for file in files),
        problems=() if state == "absent" else problems,
    )
