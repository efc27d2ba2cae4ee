"""LoRA files in their directory: found by name and never by a path, and how a LoRA is written with its strength."""

import hashlib
import re
from pathlib import Path

from zbot.errors import InvalidRequest

SUFFIX = ".safetensors"
MAX_NAME_CHARACTERS = 80  # a choice in Discord takes 100, with the strength
_SEPARATORS = re.compile(r"[\s:\uff1a]+")  # none of them can stand in `--lora name:0.8`
_STRENGTH = re.compile(r"[+-]?(\d{1,6}(\.\d{0,6})?|\.\d{1,6})", re.ASCII)


def name_of(path: Path) -> str:
    """Return the name of a LoRA file: its own without the suffix, white space and colons as `_`."""
    return _SEPARATORS.sub("_", path.name.removesuffix(SUFFIX))


def shelf(directory: Path) -> dict[str, Path]:
    """Return the LoRA files of a directory by name, in order; of two names that differ in case alone the first.

    A directory that is not there holds none.
    """
    try:
        found = sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX) and path.is_file())
    except OSError:
        return {}
    files: dict[str, Path] = {}
    for path in found:
        name = name_of(path)
        if name[:1] not in ("", ".") and len(name) <= MAX_NAME_CHARACTERS and name.isprintable():
            files.setdefault(name.casefold(), path)
    return {name_of(path): path for _, path in sorted(files.items())}


def find(directory: Path, name: str) -> Path | None:
    """Return the file of a name, whatever its case; only what lies in the directory itself can be found."""
    wanted = name.casefold()
    return next((path for known, path in shelf(directory).items() if known.casefold() == wanted), None)


def split(text: str) -> tuple[str, float | None]:
    """Return the name and the strength of `name:0.8`; the strength is None where none is written.

    Raises:
        InvalidRequest: `lora_text`, for a strength that is no number, or no name.
    """
    name, colon, strength = text.strip().replace("\uff1a", ":").rpartition(":")
    if not colon:
        name, strength = strength, ""
    name, strength = name.strip(), strength.strip()
    if not name or (colon and not _STRENGTH.fullmatch(strength)):
        raise InvalidRequest(code="lora_text", value=text[:100])
    return name, float(strength) + 0.0 if colon else None  # -0.0 becomes 0.0


def written(name: str, scale: float) -> str:
    """Return a LoRA as `split` reads it."""
    return f"{name}:{scale:g}"


def digest(data: bytes) -> str:
    """Return the SHA-256 of a LoRA file, as recipes have it."""
    return hashlib.sha256(data).hexdigest()
