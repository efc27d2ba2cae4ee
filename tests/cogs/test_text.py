import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogs._text import cut, duration, fenced, moment, plain, seconds

FAMILY = "👨‍👩‍👧‍👦"
FLAG = "🇨🇳"
THUMB = "👍🏽"
ACCENTED = "e\u0301\u0323"


def units(text: str) -> int:
    """As Discord counts: UTF-16."""
    return len(text.encode("utf-16-le")) // 2


@given(st.text(max_size=300), st.integers(1, 200))
def test_a_cut_text_fits_and_is_the_beginning(text: str, limit: int):
    result = cut(text, limit)
    assert units(result) <= limit
    assert result == text or (result.endswith("…") and text.startswith(result[:-1]))


def test_a_text_that_fits_is_not_cut():
    assert cut("x" * 10, 10) == "x" * 10
    assert cut("x" * 11, 10) == "x" * 9 + "…"
    assert cut("🦊" * 5, 10) == "🦊" * 5
    assert cut("🦊" * 6, 10) == "🦊" * 4 + "…"


@pytest.mark.parametrize("character", [FAMILY, FLAG, THUMB, ACCENTED, "❤️"])
def test_nothing_that_the_eye_sees_as_one_is_cut_in_two(character: str):
    for limit in range(1, 4 * units(character)):
        rest = cut(character * 4, limit).removesuffix("…")
        assert rest == character * (len(rest) // len(character))


@pytest.mark.parametrize(
    "text",
    [
        "``` @everyone ```",
        "`code`",
        "[free](https://discord.gg/x) <@1> <@&1> <#1> <t:1> </imagine:1> <:a:1>",
        "||spoiler|| # title > quote",
        "\u202eright to left\u2066\u200b\ufeff",
    ],
)
def test_inside_a_fence_nothing_has_an_effect(text: str):
    shown = fenced(text)
    assert shown.startswith("```\n") and shown.endswith("\n```")
    assert "`" not in shown[4:-4]
    assert not re.search("[\u200b\u202a-\u202e\u2060-\u2069\ufeff]", shown)


def test_joiners_stay_because_emoji_are_built_with_them():
    assert plain(FAMILY) == FAMILY


@given(st.text(max_size=3_000))
def test_a_fence_fits_an_embed(text: str):
    assert units(fenced(text)) <= 1_000 + len("```\n\n```")


def test_a_moment_counts_down_by_itself():
    match = re.fullmatch(r"<t:(\d+):R>", moment(90.0))
    assert match and abs(int(match[1]) - time.time() - 90) < 5


@pytest.mark.parametrize(
    ("value", "shown"), [(0.254, "0.25"), (3.44, "3.4"), (128.4, "128"), (12345.6, "12,346")]
)
def test_durations_are_for_reading(value: float, shown: str):
    assert seconds(value) == shown


@pytest.mark.parametrize(("locale", "shown"), [("en-US", "3.4 s"), ("zh-CN", "3.4 秒")])
def test_a_duration_has_the_unit_of_its_readers_language(locale: str, shown: str):
    assert duration(3.44, locale) == shown
