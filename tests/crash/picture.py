"""The small picture that the scripted engine draws; known to both sides, without any of the bot."""

import hashlib
import struct
import zlib


def png_of(seed: int, prompt: str) -> bytes:
    """Return the one small picture that belongs to a seed and a prompt."""
    colours = hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:24]
    rows = b"".join(b"\0" + colours for _ in range(8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
