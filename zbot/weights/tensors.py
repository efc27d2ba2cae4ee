"""Reads the head of a safetensors file: which tensors it holds, and whether it is as long as it says."""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
MAX_HEAD_BYTES = 100_000_000  # the format's own limit
_DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


class BadTensorFile(Exception):
    """A file that is not safetensors, or shorter or longer than its own head says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpan:
    """One tensor in a file: bytes `start` to `end` of the file, row after row, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_spans(path: Path) -> tuple[tuple[TensorSpan, ...], dict[str, str]]:
    """Return the tensors of a safetensors file in the order they lie in it, and its metadata.

    Reads only the head (28 to 56 kB for Z-Image-Turbo), so it is cheap enough for every start.

    Raises: BadTensorFile, or OSError when the file cannot be read.
    """
    with path.open("rb") as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise BadTensorFile(f"has only {file_bytes} bytes")
        (head_bytes,) = struct.unpack("<Q", prefix)
        if head_bytes > min(MAX_HEAD_BYTES, file_bytes - 8):
            raise BadTensorFile("does not begin like a safetensors file")
        head = stream.read(head_bytes)
    data_start = 8 + head_bytes
    try:
        entries = cast("dict[str, Any]", json.loads(head))
        metadata = cast("dict[str, str]", entries.pop("__metadata__", {}))
        spans = sorted(
            (
                TensorSpan(
                    name=name,
                    dtype=str(entry["dtype"]),
                    shape=tuple(int(size) for size in entry["shape"]),
                    start=data_start + int(entry["data_offsets"][0]),
                    end=data_start + int(entry["data_offsets"][1]),
                )
                for name, entry in entries.items()
            ),
            key=lambda span: (span.start, span.end),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadTensorFile("has an unreadable head") from error
    position = data_start
    for span in spans:
        count = 1
        for size in span.shape:
            count *= size
        if span.start != position or span.end - span.start != count * ITEM_BYTES.get(span.dtype, 0):
            raise BadTensorFile(f"says something impossible of its tensor {span.name}")
        position = span.end
    if position != file_bytes:
        raise BadTensorFile(f"has {file_bytes:,} bytes where its head says {position:,}")
    return tuple(spans), metadata


def stored_dtype(path: Path) -> str:
    """Return the dtype that most bytes of a safetensors file are stored in, named as torch names it."""
    spans, _ = read_spans(path)
    sizes: dict[str, int] = {}
    for span in spans:
        sizes[span.dtype] = sizes.get(span.dtype, 0) + span.end - span.start
    dtype = max(sizes, key=lambda name: sizes[name], default="F32")
    return _DTYPE_NAMES.get(dtype, dtype)
