"""Reads every byte of a model and compares it with the checksums that are known for it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zbot.errors import WeightsError
from zbot.weights.cache import Origin, Place, find_place, is_absent, working_on
from zbot.weights.check import Problem, check_shallow, fingerprint, read_structure
from zbot.weights.location import expected_files, locate_original
from zbot.weights.manifest import Record, WeightFile, read_record, write_record

_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a long work is: `action` names it in one word, `path` is the file being worked on."""

    action: str
    path: str
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify` found in one directory; `hashed` of the `files` had a checksum to compare with."""

    directory: Path
    files: int
    hashed: int
    size_bytes: int
    problems: tuple[Problem, ...]


def ignore_progress(progress: Progress) -> None:
    """Take no notice."""


def verify(
    model: str, cache_root: Path, on_progress: OnProgress = ignore_progress
) -> tuple[Verification, ...]:
    """Check presence, size and checksum of every file of a model, the original first and then its bf16 copy.

    What is found is recorded: a damaged file is refused by `locate` and fetched again by `fetch` from then
    on, and files that somebody put into the cache by hand are accepted once they are all right. One core
    hashes about 680 MB/s (measured), so Z-Image-Turbo takes a minute where the disk is as fast.

    Raises: WeightsError when there is nothing to check.
    """
    place = find_place(model, cache_root)
    if place.origin is not Origin.HUB:
        return _verify_place(place, on_progress)
    if is_absent(place):
        locate_original(place)  # says better than we could why there is nothing to check
    with working_on(place, "verify"):
        return _verify_place(place, on_progress)


def _verify_place(place: Place, on_progress: OnProgress) -> tuple[Verification, ...]:
    found: list[Verification] = []
    record = read_record(place.directory)
    converted = read_record(place.converted) if place.origin is not Origin.PACKAGE else None
    if place.directory.is_dir() or converted is None:
        found.append(_verify_original(place, record, on_progress))
    if converted is not None and converted.complete:
        problems = check_files(place.converted, converted.files, on_progress)
        write_record(place.converted, replace(converted, damaged=tuple(problem.path for problem in problems)))
        found.append(_verification(place.converted, converted.files, problems))
    return tuple(found)


def _verify_original(place: Place, record: Record | None, on_progress: OnProgress) -> Verification:
    directory = place.directory
    files = expected_files(place, record)
    if not files:
        if place.origin is Origin.HUB or not directory.is_dir():
            locate_original(place)
        files, problems = read_structure(directory)
        return _verification(directory, files, problems)
    problems = check_files(directory, files, on_progress)
    if place.origin is Origin.HUB:
        damaged = tuple(problem.path for problem in problems if problem.kind != "missing")
        if record is not None:
            revision = record.revision or ("" if problems else fingerprint(directory, files))
            complete = record.complete or not problems
            write_record(directory, replace(record, revision=revision, damaged=damaged, complete=complete))
        elif not problems:
            revision = fingerprint(directory, files)
            write_record(
                directory,
                Record(
                    model=place.model_id,
                    requested=place.requested,
                    revision=revision,
                    complete=True,
                    files=files,
                ),
            )
    return _verification(directory, files, problems)


def _verification(
    directory: Path, files: Sequence[WeightFile], problems: tuple[Problem, ...]
) -> Verification:
    return Verification(
        directory=directory,
        files=len(files),
        hashed=sum(file.digest is not None for file in files),
        size_bytes=sum(file.size_bytes for file in files),
        problems=problems,
    )


def check_files(
    directory: Path, files: Sequence[WeightFile], on_progress: OnProgress = ignore_progress
) -> tuple[Problem, ...]:
    """Return every missing, short, long or damaged file, in the order of `files`.

    Raises: WeightsError when a file cannot be read at all.
    """
    shallow = {problem.path: problem for problem in check_shallow(directory, files)}
    total_bytes = sum(file.size_bytes for file in files)
    done_bytes = 0
    problems: list[Problem] = []
    for file in files:
        if problem := shallow.get(file.path):
            problems.append(problem)
        elif file.digest is not None:
            algorithm, expected = file.digest
            before = done_bytes

            def tell(hashed_bytes: int, path: str = file.path, before: int = before) -> None:
                on_progress(
                    Progress(
                        action="verify", path=path, done_bytes=before + hashed_bytes, total_bytes=total_bytes
                    )
                )

            if hash_file(directory / file.path, algorithm, tell) != expected:
                detail = f"its {algorithm.upper()} is not the one it should be"
                problems.append(Problem(path=file.path, kind="damaged", detail=detail))
        done_bytes += file.size_bytes
        on_progress(Progress(action="verify", path=file.path, done_bytes=done_bytes, total_bytes=total_bytes))
    return tuple(problems)


def hash_file(path: Path, algorithm: str, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the hexadecimal digest of a file, telling after each chunk how many bytes are done.

    Raises: WeightsError when the file cannot be read, a disk error included.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    done_bytes = 0
    try:
        with path.open("rb", buffering=0) as stream:
            while size_bytes := stream.readinto(buffer):
                digest.update(view[:size_bytes])
                done_bytes += size_bytes
                on_bytes(done_bytes)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}); check the disk, delete the file and run "
            "`python -m zbot weights fetch`."
        ) from error
    return digest.hexdigest()
