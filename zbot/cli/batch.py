"""What the command line is asked to draw: one prompt, a sweep of seeds, or a file of prompts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zbot.cli.lora import Rack
from zbot.cli.problems import sentence
from zbot.errors import ConfigError, InvalidRequest
from zbot.flags import parse_flags
from zbot.request import MAX_SEED, ImageRequest, build_request

LARGEST_SWEEP = 1_000
_NUMBERS = ("seed", "steps", "width", "height", "count")
_TEXTS = ("prompt", "aspect")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the options, or one line of a file, say; None where they say nothing."""

    prompt: str
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    aspect: str | None = None
    steps: int | None = None
    count: int | None = None
    lora: str | None = None  # name or file, perhaps with a strength
    place: str = ""  # file and line, where it comes from one


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One picture that is asked for; one whose seed is free may have been drawn before with any other.

    `number` counts from 0 in the pictures of one request, whose seeds follow each other.
    """

    request: ImageRequest
    number: int = 0
    seed_is_free: bool = False


def pictures_of(asked: Asked, native_size: int, rack: Rack | None = None) -> list[Wanted]:
    """Return one entry for each picture; flags inside the prompt win over options, as they stand nearer to it.

    Raises: InvalidRequest: what is asked for cannot be drawn. ConfigError: there is no such LoRA file.
    """
    rack = rack or Rack()
    flags = parse_flags(asked.prompt)
    has_own_shape = flags.aspect is not None
    seed = asked.seed if flags.seed is None else flags.seed
    lora, lora_scale = rack.read(flags.lora or asked.lora)
    request = build_request(
        prompt=flags.prompt,
        native_size=native_size,
        aspect=flags.aspect or asked.aspect,
        width=None if has_own_shape else asked.width,
        height=None if has_own_shape else asked.height,
        seed=seed,
        steps=asked.steps if flags.steps is None else flags.steps,
        num_images=asked.count if flags.num_images is None else flags.num_images,
        lora=lora,
        lora_scale=lora_scale,
        known_loras=rack.known() if lora else (),
    )
    return [
        Wanted(request=picture, number=number, seed_is_free=seed is None)
        for number, picture in enumerate(request.pictures())
    ]


def batch_of(lines: Sequence[Asked], native_size: int, rack: Rack | None = None) -> list[Wanted]:
    """Return the pictures of every line.

    Raises: ConfigError: a line cannot be drawn; it is named.
    """
    wanted: list[Wanted] = []
    for asked in lines:
        try:
            wanted += pictures_of(asked, native_size, rack)
        except (InvalidRequest, ConfigError) as error:
            raise ConfigError(f"{asked.place}: {sentence(error)}") from error
    return wanted


def sweep_of(asked: Asked, seeds: range, native_size: int, rack: Rack | None = None) -> list[Wanted]:
    """Return one picture for each seed.

    Raises: InvalidRequest; ConfigError: the prompt asks for a seed or a number of pictures itself.
    """
    flags = parse_flags(asked.prompt)
    if flags.seed is not None or flags.num_images is not None:
        raise ConfigError("--seeds says which pictures are drawn; take --seed and --n out of the prompt.")
    (first,) = pictures_of(replace(asked, seed=seeds[0]), native_size, rack)
    return [Wanted(request=replace(first.request, seed=seed)) for seed in seeds]


def seeds_of(text: str) -> range:
    """Return the seeds of a sweep `first:end`, without the end, as Python's range reads.

    Raises: ConfigError: it cannot be read that way.
    """
    first, _, end = (part.strip() for part in text.partition(":"))
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in (first, end)):
        raise ConfigError(f"--seeds {text}: write two numbers, as in 40:45 for the seeds 40 to 44.")
    seeds = range(int(first), int(end))
    if not seeds:
        raise ConfigError(
            f"--seeds {text} is empty: the second number is not drawn itself, so it must be the larger one."
        )
    if seeds[-1] > MAX_SEED:
        raise ConfigError(f"--seeds {text}: {MAX_SEED} is the largest seed.")
    if len(seeds) > LARGEST_SWEEP:
        raise ConfigError(f"--seeds {text} are {len(seeds)} pictures; {LARGEST_SWEEP} is the most.")
    return seeds


def read_prompts(path: Path, defaults: Asked) -> list[Asked]:
    """Return what a file of prompts asks for: one a line, or one JSON object a line; `#` begins a comment.

    Raises: ConfigError: the file or one of its lines cannot be read; the line is named.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--prompts {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8; save the file in that encoding.") from error
    # Not splitlines: a form feed or a Unicode line separator inside a prompt does not end it.
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
    asked = [
        _read_line(f"{path}:{number}", line.strip(), defaults)
        for number, line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not asked:
        raise ConfigError(f"--prompts {path}: there is no prompt in it.")
    return asked


def _read_line(place: str, line: str, defaults: Asked) -> Asked:
    if not line.startswith("{"):
        return replace(defaults, prompt=line, place=place)
    try:
        given: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: this is not JSON ({error}).") from error
    known = (*_TEXTS, *_NUMBERS, "lora")
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"{place}: unknown {', '.join(unknown)}; known: {', '.join(known)}.")
    if not isinstance(given.get("prompt"), str):
        raise ConfigError(f"{place}: a text under “prompt” is needed.")
    for name in _NUMBERS:
        if given.get(name) is not None and type(given[name]) is not int:
            raise ConfigError(f"{place}: “{name}” must be a whole number.")
    if not isinstance(given.get("lora"), str | None):
        raise ConfigError(f"{place}: “lora” must be a text like “name:0.8”.")
    if not isinstance(given.get("aspect"), str | None):
        raise ConfigError(f"{place}: “aspect” must be a text like “16:9”.")
    if given.get("aspect") and (given.get("width") or given.get("height")):
        raise ConfigError(f"{place}: say either “aspect” or “width” and “height”.")
    if given.get("aspect"):
        given |= {"width": None, "height": None}
    elif given.get("width") or given.get("height"):
        given["aspect"] = None
    return replace(defaults, **given, place=place)
