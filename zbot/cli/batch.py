"""What the command line is asked to draw: one prompt, a sweep of seeds, or a file of prompts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from zbot.flags import parse_flags
from zbot.request import MAX_SEED, ImageRequest, build_request

_KEYS = {"prompt", "seed", "steps", "width", "height", "aspect", "count"}
LARGEST_SWEEP = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the options say; None where they say nothing."""

    prompt: str
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    aspect: str | None = None
    steps: int | None = None
    count: int | None = None


def requests_of(asked: Asked, native_size: int) -> list[ImageRequest]:
    """Return one request per picture.

    Raises:
        InvalidRequest: what is asked for cannot be drawn.
    """
    flags = parse_flags(asked.prompt)
    request = build_request(
        prompt=flags.prompt,
        native_size=native_size,
        aspect=flags.aspect or asked.aspect,
        width=asked.width,
        height=asked.height,
        seed=asked.seed if flags.seed is None else flags.seed,
        steps=asked.steps if flags.steps is None else flags.steps,
        num_images=asked.count if flags.num_images is None else flags.num_images,
    )
    return list(request.pictures())


def seeds_of(text: str) -> range:
    """Return the seeds of a sweep `first:end`, without the end, as Python's range reads.

    Raises:
        typer.BadParameter: it cannot be read that way.
    """
    first, _, end = text.partition(":")
    if not (first.isascii() and first.isdigit() and end.isascii() and end.isdigit()):
        raise typer.BadParameter(f"--seeds {text}: write two numbers, as in 40:45 for the seeds 40 to 44.")
    seeds = range(int(first), int(end))
    if not seeds or seeds[-1] > MAX_SEED or len(seeds) > LARGEST_SWEEP:
        raise typer.BadParameter(
            f"--seeds {text}: the second number must be larger, by at most {LARGEST_SWEEP}, and within {MAX_SEED + 1}."
        )
    return seeds


def read_prompts(path: Path, defaults: Asked) -> list[Asked]:
    """Return what a file of prompts asks for: one a line, or one JSON object a line; `#` begins a comment.

    Raises:
        typer.BadParameter: the file or one of its lines cannot be read; the line is named.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--prompts {path}: {error}") from error
    asked = [
        _read_line(f"{path}:{number}", line.strip(), defaults)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not asked:
        raise typer.BadParameter(f"--prompts {path}: there is no prompt in it.")
    return asked


def _read_line(place: str, line: str, defaults: Asked) -> Asked:
    if not line.startswith("{"):
        return replace(defaults, prompt=line)
    try:
        given: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise typer.BadParameter(f"{place}: this is not JSON ({error}).") from error
    if unknown := given.keys() - _KEYS:
        raise typer.BadParameter(
            f"{place}: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(_KEYS))}."
        )
    if not isinstance(given.get("prompt"), str):
        raise typer.BadParameter(f"{place}: a text under “prompt” is needed.")
    for name in _KEYS - {"prompt", "aspect"}:
        if given.get(name) is not None and type(given[name]) is not int:
            raise typer.BadParameter(f"{place}: “{name}” must be a whole number.")
    return replace(defaults, **given)
