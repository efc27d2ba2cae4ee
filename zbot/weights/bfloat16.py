"""Writes one safetensors file with its wide floats in bfloat16, and proves that every number is the nearest one there is.

The work is done on the file's own bytes with numpy: torch would bring 300 MB and two seconds into whichever process
converts, and its loaders read whole tensors. So the memory needed is three buffers, whatever the file's size.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from zbot.errors import WeightsError
from zbot.weights.tensors import ITEM_BYTES, BadTensorFile, TensorSpan, read_spans

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WIDE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_CHUNK_ITEMS = 1024 * 1024
_BF16_MAX_ERROR = 2.0**-8  # half a unit in the last of bfloat16's 8 significant bits, relative to the number
_BF16_TINY = 2.0**-133  # the smallest bfloat16 above zero


class BadCopy(Exception):
    """A tensor whose copy is not what it should be."""

    def __init__(self, tensor: str, why: str) -> None:
        super().__init__(f"tensor {tensor}: {why}")


def new_spans(spans: Sequence[TensorSpan]) -> list[TensorSpan]:
    """Return the spans of the new file, counted from the start of its data, in the order they are written.

    Wider items come first, so that every tensor stays aligned to its own item size, as the readers require.
    """
    new: list[TensorSpan] = []
    position = 0
    narrowed = [replace(span, dtype="BF16" if span.dtype in WIDE else span.dtype) for span in spans]
    for span, old in sorted(
        zip(narrowed, spans, strict=True), key=lambda pair: (-ITEM_BYTES[pair[0].dtype], pair[1].start)
    ):
        size_bytes = (old.end - old.start) // ITEM_BYTES[old.dtype] * ITEM_BYTES[span.dtype]
        new.append(replace(span, start=position, end=position + size_bytes))
        position += size_bytes
    return new


def write(
    source: Path,
    target: Path,
    spans: Sequence[TensorSpan],
    metadata: dict[str, str],
    on_bytes: Callable[[int], None],
) -> str:
    """Write one file with its wide floats in bf16, and return its SHA-256; `on_bytes` hears how much is read.

    Raises: WeightsError when the source becomes shorter meanwhile, OSError.
    """
    old_spans = {span.name: span for span in spans}
    new = new_spans(spans)
    head: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for span in new:
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

        def put(chunk: bytes | memoryview) -> None:
            writer.write(chunk)
            digest.update(chunk)

        put(struct.pack("<Q", len(text)))
        put(text)
        for span in new:
            old = old_spans[span.name]
            for chunk in _read_chunks(reader, old):
                put(to_bf16(chunk, old.dtype).data.cast("B") if old.dtype in WIDE else chunk)
                done_bytes += len(chunk)
                on_bytes(done_bytes)
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


def to_bf16(chunk: memoryview, dtype: str) -> "NDArray[np.uint16]":
    """Round to the nearest bfloat16, ties to even, as torch's `.to(torch.bfloat16)` does."""
    import numpy as np

    numbers = np.frombuffer(chunk, dtype=WIDE[dtype])
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(numbers, dtype="<f4").view("<u4")
    rounded = bits + (((bits >> 16) & 1) + 0x7FFF)
    rounded >>= 16
    result = rounded.astype("<u2")
    result[np.isnan(numbers)] = 0x7FC0
    return result


def compare(source: Path, target: Path, spans: Sequence[TensorSpan]) -> None:
    """Read both files again and require of every number that its copy is as near as bf16 allows.

    The bound does not repeat the rounding, so a mistake there, on the disk or in memory is found alike.

    Raises: BadCopy naming the tensor; WeightsError when the source becomes shorter meanwhile, OSError.
    """
    import numpy as np

    try:
        copied = {span.name: span for span in read_spans(target)[0]}
    except BadTensorFile as error:
        raise BadCopy("(all)", f"the file {error}") from error
    if copied.keys() != {span.name for span in spans}:
        raise BadCopy("(all)", "the names differ")
    with source.open("rb") as old_stream, target.open("rb") as new_stream:
        for old in spans:
            new = copied[old.name]
            if new.shape != old.shape:
                raise BadCopy(old.name, f"its shape is {new.shape} and not {old.shape}")
            for old_chunk, new_chunk in zip(
                _read_chunks(old_stream, old), _read_chunks(new_stream, new), strict=True
            ):
                if old.dtype not in WIDE:
                    if old_chunk != new_chunk:
                        raise BadCopy(old.name, "its bytes differ")
                    continue
                numbers = np.frombuffer(old_chunk, dtype=WIDE[old.dtype])
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
                    raise BadCopy(old.name, "a number is not the nearest that bf16 has")
