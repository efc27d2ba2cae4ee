"""What a stranger's text looks like in a message: fenced, cut by what the eye sees, and without effect."""

import re
import time

from zbot.text import say

# One visible character: a base with its marks, variation selectors, tones and zero-width joins.
_GRAPHEME = re.compile(
    r"(?:[\U0001F1E6-\U0001F1FF]{2}|.)"
    r"(?:[\u0300-\u036f\u20d0-\u20ff\ufe00-\ufe0f\U0001F3FB-\U0001F3FF\U000E0020-\U000E007F]|\u200d.)*",
    re.DOTALL,
)
# Direction overrides turn the text after them around; zero-width characters hide in it. The joiner builds emoji.
_INVISIBLE = re.compile("[\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def cut(text: str, limit: int) -> str:
    """Return the text in at most `limit` UTF-16 units, as Discord counts, cut between visible characters."""
    if _units(text) <= limit:
        return text
    kept, room = "", limit - 1
    for match in _GRAPHEME.finditer(text):
        room -= _units(match[0])
        if room < 0:
            break
        kept += match[0]
    return kept + "…"


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def fenced(text: str, limit: int = 1_000) -> str:
    """Return a code block that shows the text as it is: no mention, link or markdown in it has an effect."""
    return f"```\n{cut(plain(text), limit)}\n```"


def plain(text: str) -> str:
    """Return the text without invisible characters, and without back-ticks that could end a fence."""
    return _INVISIBLE.sub("", text).replace("`", "\u02cb")


def moment(in_s: float) -> str:
    """Return a time that counts down by itself in every Discord client."""
    return f"<t:{round(time.time() + in_s)}:R>"


def seconds(value: float) -> str:
    """Return a duration for reading: 0.25, 3.4, 128."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def duration(value: float, locale: str) -> str:
    """Return a duration with its unit in a locale."""
    return say("unit.seconds", locale, count=seconds(value))
