"""Finds a model's files on this machine and says, cheaply and without a network, whether they are whole."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zbot.errors import WeightsError
from zbot.weights.cache import (
    CACHE_SETTING,
    MODEL_SETTING,
    Origin,
    Place,
    aside,
    find_place,
    gigabytes,
    other_copies,
)
from zbot.weights.check import (
    Problem,
    check_shallow,
    fingerprint,
    read_json,
    read_structure,
    size_of,
)
from zbot.weights.manifest import (
    Record,
    WeightFile,
    known_manifest,
    known_manifests,
    read_record,
)
from zbot.weights.tensors import BadTensorFile, stored_dtype

log = logging.getLogger(__name__)

PIPELINE_CLASS = "ZImagePipeline"
FETCH = "`python -m zbot weights fetch`"
VERIFY = "`python -m zbot weights verify`"
CONVERT = "`python -m zbot weights convert`"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A whole model on this machine, ready for `from_pretrained(directory, local_files_only=True)`.

    `revision` is the commit recorded when it was fetched, or `local-` and a fingerprint for files nobody
    recorded. `dtype` is what the transformer is stored in (`float32`, `bfloat16`), not what it must be run
    in.
    """

    model: str
    directory: Path
    revision: str
    dtype: str
    size_bytes: int


def locate(model: str, cache_root: Path) -> ModelFiles:
    """Find a model's whole files; the bf16 copy is preferred where there is one.

    Looks at presence, size, the heads of the safetensors files and the record: milliseconds, not minutes. The
    checksums are `verify`'s business. Opens no socket and writes nothing.

    Raises: WeightsError naming the file or the cause and the command that mends it.
    """
    place = find_place(model, cache_root)
    if files := locate_converted(place):
        return files
    return locate_original(place)


def locate_original(place: Place) -> ModelFiles:
    """Find the model as it was fetched or given, never its bf16 copy.

    Raises: WeightsError, see `locate`.
    """
    directory = place.directory
    record = read_record(directory)
    files = expected_files(place, record)
    if place.origin is Origin.HUB:
        _require_complete(place, record, files)
    problems = check_shallow(directory, files) if files else ()
    if problems:
        raise WeightsError(_name_problems(place, problems))
    if not files:
        if not directory.is_dir():
            raise WeightsError(
                f"{MODEL_SETTING}={place.model}: there is no such directory; correct the setting."
            )
        files, problems = read_structure(directory)
        if problems:
            raise WeightsError(_name_problems(place, problems))
    check_architecture(place, directory)
    return _describe(place, directory, record, files)


def locate_converted(place: Place) -> ModelFiles | None:
    """Find the bf16 copy if it is whole and made from the original that is there now, or from one since deleted."""
    if place.origin is Origin.PACKAGE:
        return None
    try:
        record = read_record(place.converted)
        if record is None or not record.complete:
            return None
        problems = check_shallow(place.converted, record.files)
        if record.damaged or problems:
            log.warning("the bf16 copy is not used: %s", _first(record.damaged, problems))
            return None
        if original_revision(place) not in (None, record.revision):
            log.warning(
                "the bf16 copy is not used: it was made from another revision; %s makes it anew", CONVERT
            )
            return None
        check_architecture(place, place.converted)
        return _describe(place, place.converted, record, record.files)
    except WeightsError as error:
        log.warning("the bf16 copy is not used: %s", error)
        return None


def original_revision(place: Place) -> str | None:
    """Return the revision of the original that lies there, or None when there is none or it is being fetched."""
    record = read_record(place.directory)
    if record is not None:
        return record.revision if record.complete else None
    if place.origin is Origin.DIRECTORY and (place.directory / "model_index.json").is_file():
        files, problems = read_structure(place.directory)
        return None if problems else fingerprint(place.directory, files)
    return None


def expected_files(place: Place, record: Record | None) -> tuple[WeightFile, ...]:
    """Return the files that should be there with their sizes and checksums; empty when nobody can know."""
    if record is not None and record.files:
        return record.files
    if place.origin is Origin.HUB:
        return known_manifest(place.model_id) or ()
    # A directory that somebody filled by hand with a release zbot knows: same names, same sizes.
    for files in known_manifests().values():
        if all(size_of(place.directory / file.path) == file.size_bytes for file in files):
            return files
    return ()


def check_architecture(place: Place, directory: Path) -> None:
    """Refuse a model that is not made for the pipeline zbot draws with.

    Raises: WeightsError.
    """
    index, problem = read_json(directory, "model_index.json")
    if problem:
        raise WeightsError(_name_problems(place, (problem,)))
    if index.get("_class_name") != PIPELINE_CLASS:
        raise WeightsError(
            f"{place.model} is a {index.get('_class_name')} and zbot draws with {PIPELINE_CLASS}; set "
            f"{MODEL_SETTING} to a Z-Image model."
        )


def require_mounted(place: Place) -> None:
    """Refuse a place that `move` made a link and whose disk is not there now.

    Raises: WeightsError.
    """
    if place.home.is_symlink() and not place.home.exists():
        raise WeightsError(
            f"{place.model} was moved to {place.home.readlink()}, which is not there; mount that disk, or "
            f"delete the link {place.home} and run {FETCH}."
        )


def mend_command(place: Place) -> str:
    """Return what mends damaged files of this place, as the end of a sentence."""
    if place.origin is Origin.PACKAGE:
        return "install zbot again"
    if place.origin is Origin.DIRECTORY:
        return f"copy the model to {place.directory} again or point {MODEL_SETTING} elsewhere"
    return f"run {FETCH}, which brings only what is missing or damaged"


def _require_complete(place: Place, record: Record | None, files: Sequence[WeightFile]) -> None:
    directory = place.directory
    if record is not None and record.complete and not record.damaged:
        return
    if record is not None and record.damaged:
        raise WeightsError(
            f"{place.model} has damaged files ({_listed(record.damaged)}) in {directory}; run {FETCH}, which "
            "brings only those again."
        )
    require_mounted(place)
    if aside(place.home).is_dir() and not place.home.exists():
        raise WeightsError(f"A move of {place.model} was interrupted; run {VERIFY}, which ends it.")
    present = sum(size_of(directory / file.path) == file.size_bytes for file in files)
    if record is None and files and present == len(files):
        raise WeightsError(
            f"{place.model} lies in {directory} with all {present} files, but nobody has checked them; run "
            f"{VERIFY} once."
        )
    if directory.is_dir() and any(directory.iterdir()):
        raise WeightsError(
            f"{place.model} is only partly fetched ({present} of {len(files) or 'an unknown number of'} "
            f"files in {directory}); run {FETCH}: it goes on where it stopped."
        )
    others = other_copies(place)
    hint = f" Another copy lies in {others[0]}: {MODEL_SETTING}={others[0]} reads that." if others else ""
    if Path(place.model).is_dir():
        hint += (
            f" If you mean the directory of that name, write {MODEL_SETTING}={Path(place.model).resolve()}."
        )
    size = f" ({gigabytes(sum(file.size_bytes for file in files))})" if files else ""
    raise WeightsError(
        f"{place.model} is not in the cache ({directory}); run {FETCH}{size}, or set {CACHE_SETTING} to "
        f"where it is.{hint}"
    )


def _describe(
    place: Place, directory: Path, record: Record | None, files: Sequence[WeightFile]
) -> ModelFiles:
    transformer = next(
        (f.path for f in files if f.path.startswith("transformer/") and f.path.endswith(".safetensors")), ""
    )
    try:
        dtype = stored_dtype(directory / transformer)
        revision = record.revision if record is not None else fingerprint(directory, files)
    except (BadTensorFile, OSError) as error:
        raise WeightsError(
            f"{directory / transformer} cannot be read ({error}); {mend_command(place)}."
        ) from error
    return ModelFiles(
        model=place.model,
        directory=directory,
        revision=revision,
        dtype=dtype,
        size_bytes=sum(file.size_bytes for file in files),
    )


def _name_problems(place: Place, problems: Sequence[Problem]) -> str:
    return (
        f"{place.model} cannot be loaded from {place.directory}: {_listed(problems)}; {mend_command(place)}."
    )


def _listed(items: Sequence[object]) -> str:
    shown = "; ".join(map(str, items[:3]))
    return f"{shown} and {len(items) - 3} more" if len(items) > 3 else shown


def _first(damaged: Sequence[str], problems: Sequence[Problem]) -> str:
    return str(problems[0]) if problems else f"{damaged[0]} is damaged"
