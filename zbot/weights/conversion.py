"""Saves a model once more in bfloat16, file by file, and switches to the copy once all of it is proven."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from zbot.errors import WeightsError
from zbot.weights import bfloat16
from zbot.weights.cache import Origin, Place, find_place, is_absent, require_space, working_on
from zbot.weights.location import ModelFiles, locate, locate_converted, locate_original
from zbot.weights.manifest import RECORD_NAME, Record, WeightFile, read_record, sync_directory, write_record
from zbot.weights.tensors import ITEM_BYTES, BadTensorFile, TensorSpan, read_spans
from zbot.weights.verification import OnProgress, Progress, ignore_progress

CONVERT = "`python -m zbot weights convert`"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    file: WeightFile
    spans: tuple[TensorSpan, ...]
    metadata: dict[str, str]
    new_bytes: int

    @property
    def is_converted(self) -> bool:
        return any(span.dtype in bfloat16.WIDE for span in self.spans)


def convert(
    model: str, cache_root: Path, on_progress: OnProgress = ignore_progress, *, delete_original: bool = False
) -> ModelFiles:
    """Write the bf16 copy of a whole model and return it; from then on `locate` prefers it.

    Files that are in bf16 already are shared with the original where the disk can (a hard link), so
    Z-Image-Turbo needs 12.3 GB more, or 20.5 GB in all once `delete_original` has removed the float32 files.
    The copy appears under its name only after every tensor of it has been read back and compared.

    Raises: WeightsError when the original is not whole, the disk too small or a tensor has no bf16 neighbour.
    """
    place = find_place(model, cache_root)
    if place.origin is Origin.PACKAGE:
        return locate(model, cache_root)
    if place.origin is Origin.HUB and is_absent(place):
        locate_original(place)  # raises, saying what to do first
    with working_on(place, "convert"):
        if files := locate_converted(place):
            _delete_original(place, delete_original)
            return files
        original = locate_original(place)
        plans = _plan(place, original)
        if not any(plan.is_converted for plan in plans):
            return original
        try:
            _write_copy(place, original, plans, on_progress)
        except OSError as error:
            raise WeightsError(
                f"The bf16 copy {place.converted} cannot be written ({error.strerror}); free or mend that "
                f"disk and run {CONVERT} again."
            ) from error
        _delete_original(place, delete_original)
        return locate(model, cache_root)


def _delete_original(place: Place, wanted: bool) -> None:
    # Only what fetch could bring again: a directory of somebody's own is theirs to delete.
    if wanted and place.origin is Origin.HUB and place.directory.is_dir():
        shutil.rmtree(place.directory)


def _plan(place: Place, original: ModelFiles) -> tuple[_Plan, ...]:
    record = read_record(place.directory)
    plans: list[_Plan] = []
    for file in record.files if record is not None else _list_directory(original.directory):
        if not file.path.endswith(".safetensors"):
            plans.append(_Plan(file=file, spans=(), metadata={}, new_bytes=file.size_bytes))
            continue
        try:
            spans, metadata = read_spans(original.directory / file.path)
        except BadTensorFile as error:
            raise WeightsError(
                f"{file.path} of {place.model} {error}; run `python -m zbot weights verify`."
            ) from error
        new_bytes = file.size_bytes
        for span in spans:
            if span.dtype in bfloat16.WIDE:
                new_bytes -= (span.end - span.start) * (ITEM_BYTES[span.dtype] - 2) // ITEM_BYTES[span.dtype]
        plans.append(_Plan(file=file, spans=spans, metadata=metadata, new_bytes=new_bytes))
    return tuple(plans)


def _list_directory(directory: Path) -> tuple[WeightFile, ...]:
    hidden = re.compile(r"(^|/)\.")  # a .git or a download cache is no part of the model
    return tuple(
        WeightFile(path=path.relative_to(directory).as_posix(), size_bytes=path.stat().st_size)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and path.name != RECORD_NAME
        and not hidden.search(path.relative_to(directory).as_posix())
    )


def _write_copy(place: Place, original: ModelFiles, plans: Sequence[_Plan], on_progress: OnProgress) -> None:
    directory = place.converted.with_name(f"{place.converted.name}.incomplete")
    shutil.rmtree(directory, ignore_errors=True)  # an earlier attempt that was interrupted
    directory.mkdir(parents=True)
    require_space(directory, sum(plan.new_bytes for plan in plans if plan.is_converted), "convert")
    total_bytes = sum(plan.file.size_bytes for plan in plans)
    progress = _Stepper(on_progress, total_bytes)
    try:
        files: list[WeightFile] = []
        for plan in plans:
            source, target = original.directory / plan.file.path, directory / plan.file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if plan.is_converted:
                sha256 = bfloat16.write(
                    source, target, plan.spans, plan.metadata, partial(progress.tell, plan.file.path)
                )
                _compare(source, target, plan)
                files.append(WeightFile(path=plan.file.path, size_bytes=target.stat().st_size, sha256=sha256))
            elif plan.file.path.endswith(".safetensors.index.json"):
                files.append(_write_index(source, target, plan, plans))
            else:
                link_or_copy(source, target)
                files.append(plan.file)
            progress.end_file(plan.file)
        record = Record(
            model=place.model_id,
            requested=place.requested,
            revision=original.revision,
            complete=True,
            files=tuple(files),
        )
        write_record(directory, record)
        shutil.rmtree(
            place.converted, ignore_errors=True
        )  # damaged, or of another revision: locate refused it
        directory.rename(place.converted)
        sync_directory(place.converted.parent)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the disk cannot."""
    try:
        os.link(source, target, follow_symlinks=True)
    except OSError:
        shutil.copyfile(source, target)


class _Stepper:
    """Counts source bytes over all files."""

    def __init__(self, on_progress: OnProgress, total_bytes: int) -> None:
        self._on_progress = on_progress
        self._total_bytes = total_bytes
        self._before_bytes = 0

    def tell(self, path: str, done_bytes: int) -> None:
        done_bytes += self._before_bytes
        self._on_progress(
            Progress(action="convert", path=path, done_bytes=done_bytes, total_bytes=self._total_bytes)
        )

    def end_file(self, file: WeightFile) -> None:
        self._before_bytes += file.size_bytes
        self.tell(file.path, 0)


def _compare(source: Path, target: Path, plan: _Plan) -> None:
    try:
        bfloat16.compare(source, target, plan.spans)
    except bfloat16.BadCopy as error:
        raise WeightsError(
            f"The bf16 copy of {plan.file.path} is wrong at {error}; run `python -m zbot weights verify`, then "
            f"{CONVERT} again."
        ) from error


def _write_index(source: Path, target: Path, plan: _Plan, plans: Sequence[_Plan]) -> WeightFile:
    """Write the shard index again with the new total size; which tensor lies in which shard stays."""
    index = cast("dict[str, Any]", json.loads(source.read_text(encoding="utf-8")))
    part = plan.file.path.rpartition("/")[0]
    total_bytes = 0
    for other in plans:
        if other.file.path.rpartition("/")[0] == part and other.spans:
            total_bytes += sum(span.end - span.start for span in bfloat16.new_spans(other.spans))
    index["metadata"] = cast("dict[str, Any]", index.get("metadata") or {}) | {"total_size": total_bytes}
    content = (json.dumps(index, indent=2) + "\n").encode()
    target.write_bytes(content)
    return WeightFile(
        path=plan.file.path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
