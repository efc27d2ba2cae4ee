"""Flags typed inside a prompt, the way Midjourney taught people: `a fox --ar 16:9 --seed 7`."""

import re
from dataclasses import dataclass

from zbot.errors import InvalidRequest

# Phones make an em or en dash of two hyphens, so after a space both begin a flag where a letter follows. Chinese has no
# spaces between words, so two hyphens begin one after any character that is not of a Latin word.
_FLAG = re.compile(
    r"(?:(?<![A-Za-z0-9_-])--|(?:(?<=\s)|^)[\u2014\u2013])([A-Za-z][\w-]*)(?:[=\s]+([^\s\u2014\u2013-]\S*|-\d\S*))?"
)
_TEXTS = ("aspect", "lora")
_NAMES = {
    "ar": "aspect",
    "aspect": "aspect",
    "seed": "seed",
    "n": "num_images",
    "count": "num_images",
    "steps": "steps",
    "lora": "lora",
}
KNOWN_FLAGS = "--ar 16:9, --seed 7, --n 4, --steps 8, --lora name:0.8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What the flags of a prompt ask for; None where a flag is absent."""

    prompt: str
    aspect: str | None = None
    seed: int | None = None
    num_images: int | None = None
    steps: int | None = None
    lora: str | None = None  # as written, perhaps with a strength: zbot.loras.split


def parse_flags(text: str) -> Flags:
    """Split a prompt from its flags; a flag may stand anywhere, and of two alike the last one counts.

    Raises:
        InvalidRequest: `flag_unknown` or `flag_value`, with the list of known flags.
    """
    found: dict[str, str | int] = {}
    rest: list[str] = []
    end = 0
    for match in _FLAG.finditer(text):
        flag, value = match[1].lower(), match[2]
        if flag not in _NAMES:
            raise InvalidRequest(code="flag_unknown", flag=f"--{flag[:40]}", known=KNOWN_FLAGS)
        if value is None:
            raise InvalidRequest(code="flag_value", flag=f"--{flag}", known=KNOWN_FLAGS)
        name = _NAMES[flag]
        if name not in _TEXTS and not re.fullmatch(r"[+-]?\d{1,20}", value, re.ASCII):
            raise InvalidRequest(code="flag_value", flag=f"--{flag} {value[:40]}", known=KNOWN_FLAGS)
        found[name] = value if name in _TEXTS else int(value)
        rest.append(text[end : match.start()])
        end = match.end()
    rest.append(text[end:])
    return Flags(prompt="".join(rest), **found)  # pyright: ignore[reportArgumentType] the names above are the fields
