"""Writes PNG files on all cores: the picture is cut into strips that are filtered and deflated side by side."""

import os
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The strips' height is part of the format of our files: the bytes must not depend on the number of cores.
STRIP_ROWS = 64
MAX_THREADS = 16
# After filtering, a photograph has runs but no long repetitions: run-length matching finds what there is, in a fifth of
# the time of level 6 and in fewer bytes (docs/performance-gpu.md has the figures).
STRATEGY = zlib.Z_RLE
LEVEL = 1
WINDOW_BITS = 15
ADLER_BASE = 65521
SUB, UP, AVERAGE, PAETH = 1, 2, 3, 4


def encode(rgb: Pixels, text: Mapping[str, str], *, filtered: Pixels | None = None) -> bytes:
    """Return the PNG file of a picture, uint8 [height, width, 3], with `text` as its text chunks, in their order.

    `filtered` are the picture's rows as `filter_rows` returns them, if somebody has made them already.

    The same arguments give the same bytes on every machine with the same zlib. Latin-1 values become tEXt chunks,
    others iTXt.

    Raises: ValueError for pixels of another shape or type, and for a keyword that PNG forbids: not 1 to 79 printable
    Latin-1 characters, or with a space at an end or two in a row; for text with a NUL character.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"pixels must be uint8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}")
    height, width, _ = rgb.shape
    rows = np.ascontiguousarray(rgb).reshape(height, width * 3)
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [_text_chunk(keyword, value) for keyword, value in text.items()]
    if filtered is not None and filtered.shape != (height, 1 + width * 3):
        raise ValueError(f"filtered rows must be {[height, 1 + width * 3]}, not {list(filtered.shape)}")

    def strip(start: int) -> tuple[bytes, int, int]:
        stop = min(start + STRIP_ROWS, height)
        lines = filter_rows(rows, start, stop) if filtered is None else filtered[start:stop]
        return _strip(lines.tobytes(), is_first=start == 0)

    adler = zlib.adler32(b"")
    for chunk, part_adler, part_bytes in _pool().map(strip, range(0, height, STRIP_ROWS)):
        chunks.append(chunk)
        adler = _joined_adler(adler, part_adler, part_bytes)
    # An empty last block and the checksum of the whole end the stream that the strips are pieces of.
    chunks.append(_chunk(b"IDAT", b"\x03\x00" + struct.pack(">I", adler)))
    chunks.append(_chunk(b"IEND", b""))
    return SIGNATURE + b"".join(chunks)


@cache
def _pool() -> ThreadPoolExecutor:
    # zlib and numpy release the interpreter lock, so threads are enough, and they are kept: starting them costs as
    # much as a small picture.
    return ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="png")


def _strip(lines: bytes, *, is_first: bool) -> tuple[bytes, int, int]:
    """Return the strip's IDAT chunk, and the checksum and number of the bytes that went into it."""
    # A raw stream without header or checksum, ended on a byte's border: such pieces may stand behind one another.
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, 9, STRATEGY)
    data = deflate.compress(lines) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return _chunk(b"IDAT", (b"\x78\x01" if is_first else b"") + data), zlib.adler32(lines), len(lines)


def filter_rows(rows: Pixels, start: int, stop: int) -> Pixels:
    """Return rows start to stop of uint8 [height, 3 * width], each behind its filter's number and filtered with the one that leaves the least."""
    here = rows[start:stop]
    above = np.zeros_like(here)
    above[1:] = here[:-1]
    if start:
        above[0] = rows[start - 1]
    left, above_left = np.zeros_like(here), np.zeros_like(here)
    left[:, 3:] = here[:, :-3]
    above_left[:, 3:] = above[:, :-3]
    candidates = {
        SUB: here - left,
        UP: here - above,
        # (left + above) // 2 without a wider type: what both share, and half of what they do not.
        AVERAGE: here - ((left & above) + ((left ^ above) >> 1)),
        PAETH: here - _paeth(left, above, above_left),
    }
    best = np.empty((stop - start, 1 + here.shape[1]), dtype=np.uint8)
    least = np.full(stop - start, np.iinfo(np.uint32).max, dtype=np.uint32)
    for number, candidate in candidates.items():
        # The distance from zero in either direction: PNG's own advice on how to choose.
        size = np.minimum(candidate, np.negative(candidate)).sum(axis=1, dtype=np.uint32)
        better = size < least
        least[better] = size[better]
        best[better, 0] = number
        best[better, 1:] = candidate[better]
    return best


def _paeth(left: Pixels, above: Pixels, above_left: Pixels) -> Pixels:
    """Return, of the three neighbours, the one nearest to left + above - above_left."""
    to_left = above.astype(np.int16) - above_left
    to_above = left.astype(np.int16) - above_left
    to_above_left = np.abs(to_left + to_above)
    np.abs(to_left, out=to_left)
    np.abs(to_above, out=to_above)
    nearest = np.where(to_above <= to_above_left, above, above_left)
    return np.where(to_left <= np.minimum(to_above, to_above_left), left, nearest)


def _joined_adler(first: int, second: int, second_bytes: int) -> int:
    """Return the Adler-32 of two runs of bytes from theirs and the second's length (RFC 1950, section 8.2)."""
    first_low, first_high = first & 0xFFFF, first >> 16
    low = (first_low + (second & 0xFFFF) - 1) % ADLER_BASE
    high = (first_high + (second >> 16) + second_bytes * (first_low - 1)) % ADLER_BASE
    return high << 16 | low


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _text_chunk(keyword: str, value: str) -> bytes:
    if (
        not 1 <= len(keyword) <= 79
        or keyword != " ".join(keyword.split())
        or not all(" " <= letter <= "~" or "\xa1" <= letter <= "\xff" for letter in keyword)
    ):
        raise ValueError(f"not a PNG keyword: {keyword!r}")
    if "\0" in value:
        raise ValueError(f"the text of {keyword!r} holds a NUL character")
    name = keyword.encode("latin-1")
    try:
        return _chunk(b"tEXt", name + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", name + b"\0\0\0\0\0" + value.encode())
