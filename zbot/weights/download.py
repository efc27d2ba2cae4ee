"""Brings a model from ModelScope into the cache: what is missing of it, checked and recorded."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from zbot.errors import WeightsError
from zbot.weights.cache import (
    DEFAULT_REVISION,
    Origin,
    Place,
    check_cache_root,
    find_place,
    working_on,
)
from zbot.weights.check import fingerprint, partial_path, size_of
from zbot.weights.hub import Hub, Listing, disk_sentence
from zbot.weights.location import FETCH, ModelFiles, locate, locate_original, require_mounted
from zbot.weights.manifest import Record, WeightFile, known_manifest, read_record, write_record
from zbot.weights.verification import OnProgress, check_files, ignore_progress

# What a pipeline reads lies at most one directory deep; everything else in a model's repository is for people.
_PIPELINE_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def fetch(
    model: str, cache_root: Path, on_progress: OnProgress = ignore_progress, *, any_version: bool = False
) -> ModelFiles:
    """Bring what is missing of a model into the cache, check every byte of it and record what it is.

    A model that is whole already costs no connection. An interrupted fetch goes on at the byte where it
    stopped. `any_version` accepts files that differ from the release zbot knows, as after the vendor has
    published another. Runs for as long as the line needs; call it from a thread or a command, never from the
    event loop.

    Raises: WeightsError when it cannot be brought; what has arrived is kept.
    """
    check_cache_root(cache_root)
    place = find_place(model, cache_root)
    if place.origin is not Origin.HUB:
        raise WeightsError(
            f"{model} is not fetched: it lies in {place.directory}; `weights verify` checks it."
        )
    with working_on(place, "fetch"):
        if (whole := _whole(place, cache_root)) is not None:
            return whole
        require_mounted(place)
        try:
            place.directory.mkdir(parents=True, exist_ok=True)
            _fetch(place, cache_root, on_progress, any_version)
        except OSError as error:
            raise WeightsError(disk_sentence(place.directory, error)) from error
        return locate(model, cache_root)


def _whole(place: Place, cache_root: Path) -> ModelFiles | None:
    try:
        if place.directory.is_dir():
            locate_original(place)  # a whole bf16 copy is no reason to leave its original damaged
        return locate(place.model, cache_root)
    except WeightsError:
        return None


def _fetch(place: Place, cache_root: Path, on_progress: OnProgress, any_version: bool) -> None:
    hub = Hub(place, cache_root)
    listing = hub.list_files()
    known = known_manifest(place.model_id) if place.requested == DEFAULT_REVISION else None
    files = _choose_files(place, listing, None if any_version else known)
    before = read_record(place.directory)
    damaged = set(before.damaged) if before is not None else set[str]()
    record = Record(
        model=place.model_id,
        requested=place.requested,
        revision=_revision(place, listing, files),
        complete=False,
        files=files,
    )
    problem: object = None
    for _ in range(2):  # a file that arrives damaged is brought once more
        missing = _drop_unusable(place.directory, files, damaged)
        write_record(place.directory, record)
        if missing:
            hub.download(missing, files, on_progress)
        problems = check_files(place.directory, files, on_progress)
        damaged, problem = {found.path for found in problems}, next(iter(problems), None)
        if problem is None:
            revision = record.revision or fingerprint(place.directory, files)
            whole = Record(
                model=record.model, requested=record.requested, revision=revision, complete=True, files=files
            )
            write_record(place.directory, whole)
            return
    raise WeightsError(
        f"{problem}, although it has just been fetched twice: the hub serves another version than the one "
        f"zbot knows, or the disk or the line damages it; run {FETCH} again, or with --any-version to take "
        "the hub's."
    )


def _choose_files(
    place: Place, listing: Listing, known: Sequence[WeightFile] | None
) -> tuple[WeightFile, ...]:
    if known is None:
        chosen = tuple(
            file
            for path, file in sorted(listing.files.items())
            if path.count("/") <= 1
            and any(fnmatch.fnmatch(path, pattern) for pattern in _PIPELINE_PATTERNS)
            and ("/" in path or path == "model_index.json")
        )
        if not any(file.path == "model_index.json" for file in chosen):
            raise WeightsError(
                f"{place.model} has no model_index.json on the hub, so it is not a diffusers pipeline; "
                "choose another model."
            )
        return chosen
    for file in known:
        listed = listing.files.get(file.path)
        if listed is None or listed.size_bytes != file.size_bytes:
            now = "is gone from the hub" if listed is None else f"has {listed.size_bytes:,} bytes on the hub"
            raise WeightsError(
                f"{file.path} of {place.model} {now} and {file.size_bytes:,} in the release zbot knows; "
                f"update zbot, or run {FETCH[:-1]} --any-version` to take what the hub has now."
            )
    # The hub's SHA-256 stands in where the vendor's manifest has no MD5.
    return tuple(
        WeightFile(
            path=file.path,
            size_bytes=file.size_bytes,
            md5=file.md5,
            sha256=listing.files[file.path].sha256 or file.sha256,
        )
        for file in known
    )


def _revision(place: Place, listing: Listing, files: Sequence[WeightFile]) -> str:
    """Name what is fetched by the newest commit that touched one of its files: a changed README changes nothing."""
    commits = [listing.commits[file.path] for file in files if file.path in listing.commits]
    return max(commits)[1] if commits else ""


def _drop_unusable(directory: Path, files: Sequence[WeightFile], damaged: set[str]) -> list[WeightFile]:
    """Delete what cannot become right by going on, and return the files still to be brought."""
    missing: list[WeightFile] = []
    for file in files:
        path = directory / file.path
        if file.path in damaged or size_of(path) != file.size_bytes:
            path.unlink(missing_ok=True)
            missing.append(file)
            if (size_of(partial_path(path)) or 0) > file.size_bytes:
                partial_path(path).unlink()
        else:
            partial_path(path).unlink(missing_ok=True)
    return missing
