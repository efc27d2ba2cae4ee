"""Frames between the bot and the engine's process: a JSON header and raw bytes, each preceded by its length."""

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

Header = dict[str, Any]

# Both ends are ours and of one version; the limits only keep a garbled length from asking for all the memory.
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 28

_LENGTHS = struct.Struct("!II")


def pack(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Return one frame."""
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[Header, bytes] | None:
    """Return the next header and payload, or None when the other end is gone.

    Raises: ValueError for something that is no frame.
    """
    try:
        header_bytes, payload_bytes = _checked(await reader.readexactly(_LENGTHS.size))
        return json.loads(await reader.readexactly(header_bytes)), await reader.readexactly(payload_bytes)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive_frame(connection: socket.socket) -> tuple[Header, bytes] | None:
    """Wait for the next header and payload on a blocking socket; None when the other end is gone.

    Raises: ValueError for something that is no frame.
    """
    try:
        lengths = _receive(connection, _LENGTHS.size)
        if lengths is None:
            return None
        header_bytes, payload_bytes = _checked(lengths)
        header, payload = _receive(connection, header_bytes), _receive(connection, payload_bytes)
    except ConnectionError:
        return None
    return None if header is None or payload is None else (json.loads(header), payload)


def _checked(lengths: bytes) -> tuple[int, int]:
    header_bytes, payload_bytes = _LENGTHS.unpack(lengths)
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame of {header_bytes} and {payload_bytes} bytes is no frame of ours")
    return header_bytes, payload_bytes


def _receive(connection: socket.socket, size: int) -> bytes | None:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(min(size - len(received), 1 << 20))
        if not piece:
            return None
        received += piece
    return bytes(received)
