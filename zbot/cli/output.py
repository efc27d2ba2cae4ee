"""Where the command line may write, and what it calls the files."""

import re
import unicodedata
from pathlib import Path

import typer

# Names that Windows keeps for devices, whatever their suffix.
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
MAX_PROMPT_NAME_BYTES = 80  # most file systems take 255 bytes for a whole name


def file_name(text: str) -> str:
    """Return text as a part of a file name that every file system takes."""
    kept = "".join(char if char.isalnum() else "-" for char in unicodedata.normalize("NFC", text))
    name = (
        re.sub("-{2,}", "-", kept)
        .strip("-")
        .encode()[:MAX_PROMPT_NAME_BYTES]
        .decode(errors="ignore")
        .strip("-")
    )
    return f"{name}-" if name.lower() in _RESERVED else name or "picture"


def fill_in(pattern: Path, *, seed: int, index: int, prompt: str, several: bool) -> Path:
    """Return the path of one picture; `{seed}`, `{index}` and `{prompt}` stand for its own.

    Several pictures need different names, so without a pattern the seed is added.
    """
    text = str(pattern)
    filled = (
        text.replace("{seed}", str(seed))
        .replace("{index}", str(index))
        .replace("{prompt}", file_name(prompt))
    )
    path = Path(filled)
    if several and filled == text:
        path = path.with_stem(f"{path.stem}-{index}-{seed}")
    return path if path.suffix.lower() == ".png" else path.with_name(f"{path.name}.png")


def allowed(path: Path, *, anywhere: bool) -> Path:
    """Return the path if it may be written.

    Raises:
        typer.BadParameter: it leads out of the working directory.
    """
    # Resolved, so that neither `..` nor a symbolic link leads out unseen.
    if not anywhere and not path.resolve().is_relative_to(Path.cwd().resolve()):
        raise typer.BadParameter(f"{path} lies outside the working directory; add --anywhere if you mean it.")
    return path
