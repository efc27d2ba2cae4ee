"""Saves a model once more in bfloat16, piece by piece, and proves that the copy is the nearest one there is.

The work is done on the files' own bytes with numpy: torch would bring 300 MB and two seconds into whichever
process converts, and its loaders read whole tensors. So the memory needed is three buffers, whatever the
model's size.
"""

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from zbot.errors import WeightsError
from zbot.weights.cache import Origin, Place, find_place, is_absent, require_space, working_on
from zbot.weights.location import ModelFiles, locate, locate_converted, locate_original
from zbot.weights.manifest import RECORD_NAME, Record, WeightFile, read_record, sync_directory, write_record
from zbot.weights.tensors import ITEM_BYTES, BadTensorFile, TensorSpan, read_spans
from zbot.weights.verification import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONVERT = "`python -m zbot weights convert`"
_WIDE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_CHUNK_ITEMS = 1024 * 1024
_BF16_MAX_ERROR = 2.0**-8  # half a unit in the last of bfloat16's 8 significant bits, relative to the number
_BF16_TINY = 2.0**-133  # the smallest bfloat16 above zero


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    file: WeightFile
    spans: tuple[TensorSpan, ...]
    metadata: dict[str, str]
    new_bytes: int

    @property
    def is_converted(self) -> bool:
        return any(span.dtype in _WIDE for span in self.spans)


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
            if span.dtype in _WIDE:
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
                sha256 = _write_bf16(source, target, plan, progress)
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


def _new_spans(spans: Sequence[TensorSpan]) -> list[TensorSpan]:
    """Return the spans of the new file, counted from the start of its data, in the order they are written.

    Wider items come first, so that every tensor stays aligned to its own item size, as the readers require.
    """
    new: list[TensorSpan] = []
    position = 0
    narrowed = [replace(span, dtype="BF16" if span.dtype in _WIDE else span.dtype) for span in spans]
    for span, old in sorted(
        zip(narrowed, spans, strict=True), key=lambda pair: (-ITEM_BYTES[pair[0].dtype], pair[1].start)
    ):
        size_bytes = (old.end - old.start) // ITEM_BYTES[old.dtype] * ITEM_BYTES[span.dtype]
        new.append(replace(span, start=position, end=position + size_bytes))
        position += size_bytes
    return new


def _write_bf16(source: Path, target: Path, plan: _Plan, progress: _Stepper) -> str:
    """Write one file with its wide floats in bf16, and return its SHA-256."""
    old_spans = {span.name: span for span in plan.spans}
    new_spans = _new_spans(plan.spans)
    head: dict[str, Any] = {"__metadata__": plan.metadata} if plan.metadata else {}
    for span in new_spans:
        head[span.name] = {
            "dtype": span.dtype,
            "shape": list(span.shape),
            "data_offsets": [span.start, span.end],
        }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    done_bytes = 0
    with source.open("rb") as reader, target.open("wb") as writer:

        def write(chunk: bytes | memoryview) -> None:
            writer.write(chunk)
            digest.update(chunk)

        write(struct.pack("<Q", len(text)))
        write(text)
        for span in new_spans:
            old = old_spans[span.name]
            for chunk in _read_chunks(reader, old):
                write(_to_bf16(chunk, old.dtype).data.cast("B") if old.dtype in _WIDE else chunk)
                done_bytes += len(chunk)
                progress.tell(plan.file.path, done_bytes)
        writer.flush()
        os.fsync(writer.fileno())
        if hasattr(os, "posix_fadvise"):
            # Let the comparison read what the disk holds, not what memory remembers.
            os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def _read_chunks(stream: BinaryIO, span: TensorSpan) -> Generator[memoryview]:
    item_bytes = ITEM_BYTES[span.dtype]
    buffer = bytearray(min(span.end - span.start, _CHUNK_ITEMS * item_bytes))
    stream.seek(span.start)
    position = span.start
    while position < span.end:
        view = memoryview(buffer)[: min(len(buffer), span.end - position)]
        if cast("Any", stream).readinto(view) != len(view):
            raise WeightsError(
                f"{stream.name} became shorter while it was read; run `python -m zbot weights verify`."
            )
        yield view
        position += len(view)


def _to_bf16(chunk: memoryview, dtype: str) -> "NDArray[np.uint16]":
    """Round to the nearest bfloat16, ties to even, as torch's `.to(torch.bfloat16)` does."""
    import numpy as np

    numbers = np.frombuffer(chunk, dtype=_WIDE[dtype])
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(numbers, dtype="<f4").view("<u4")
    rounded = bits + (((bits >> 16) & 1) + 0x7FFF)
    rounded >>= 16
    result = rounded.astype("<u2")
    result[np.isnan(numbers)] = 0x7FC0
    return result


def _compare(source: Path, target: Path, plan: _Plan) -> None:
    """Read both files again and require of every number that its copy is as near as bf16 allows.

    The bound does not repeat the rounding, so a mistake there, on the disk or in memory is found alike.

    Raises: WeightsError naming the tensor.
    """
    import numpy as np

    def refuse(name: str, why: str) -> WeightsError:
        return WeightsError(
            f"The bf16 copy of {plan.file.path} is wrong at tensor {name}: {why}; run `python -m zbot "
            f"weights verify`, then {CONVERT} again."
        )

    try:
        new_spans = {span.name: span for span in read_spans(target)[0]}
    except BadTensorFile as error:
        raise refuse("(all)", f"the file {error}") from error
    if new_spans.keys() != {span.name for span in plan.spans}:
        raise refuse("(all)", "the names differ")
    with source.open("rb") as old_stream, target.open("rb") as new_stream:
        for old in plan.spans:
            new = new_spans[old.name]
            if new.shape != old.shape:
                raise refuse(old.name, f"its shape is {new.shape} and not {old.shape}")
            for old_chunk, new_chunk in zip(
                _read_chunks(old_stream, old), _read_chunks(new_stream, new), strict=True
            ):
                if old.dtype not in _WIDE:
                    if old_chunk != new_chunk:
                        raise refuse(old.name, "its bytes differ")
                    continue
                numbers = np.frombuffer(old_chunk, dtype=_WIDE[old.dtype])
                if old.dtype == "F16":  # too narrow to hold the bound
                    numbers = numbers.astype("<f4")
                copies = (np.frombuffer(new_chunk, dtype="<u2").astype("<u4") << 16).view("<f4")
                with np.errstate(all="ignore"):
                    bound = np.abs(numbers) * numbers.dtype.type(_BF16_MAX_ERROR) + numbers.dtype.type(
                        _BF16_TINY
                    )
                    near = np.abs(numbers - copies) <= bound
                    same = (numbers == copies) | (np.isnan(numbers) & np.isnan(copies))
                if not bool(np.all((near & np.isfinite(copies)) | same)):
                    raise refuse(old.name, "a number is not the nearest that bf16 has")


def _write_index(source: Path, target: Path, plan: _Plan, plans: Sequence[_Plan]) -> WeightFile:
    """Write the shard index again with the new total size; which tensor lies in which shard stays."""
    index = cast("dict[str, Any]", json.loads(source.read_text(encoding="utf-8")))
    part = plan.file.path.rpartition("/")[0]
    total_bytes = 0
    for other in plans:
        if other.file.path.rpartition("/")[0] == part and other.spans:
            total_bytes += sum(span.end - span.start for span in _new_spans(other.spans))
    index["metadata"] = cast("dict[str, Any]", index.get("metadata") or {}) | {"total_size": total_bytes}
    content = (json.dumps(index, indent=2) + "\n").encode()
    target.write_bytes(content)
    return WeightFile(
        path=plan.file.path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
