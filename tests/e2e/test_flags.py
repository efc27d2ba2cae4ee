"""Flags typed inside the prompt, the way Midjourney taught people."""

import pytest

from tests.bot_process import BotProcess
from tests.e2e.desk import Desk
from tests.e2e.scene import E2E, facts_of, job_for, prompt_of, refusal, result, seeds_of, sizes_of
from zbot.sandbox.people import Person

pytestmark = E2E


@pytest.mark.parametrize(
    "typed",
    [
        "a fox --ar 16:9 --seed 7 --n 2 --steps 5",
        "a fox \u2014ar 16:9 \u2014seed 7 \u2014n 2 \u2014steps 5",  # what phones make of two hyphens
        "a fox \u2013ar 16:9 \u2013seed 7 \u2013n 2 \u2013steps 5",
        "--n 2 --seed=7 a fox --steps 5 --aspect 16:9",
        "a fox --AR 16:9 --Seed 7 --count 2 --STEPS 5",
        "a fox --ar 16x9 --seed 7 --n 2 --steps 5",
        "a fox\n--ar 16\uff1a9\n--seed 7\n--n 2\n--steps 5",  # a Chinese keyboard's colon
    ],
)
async def test_flags_are_read_wherever_and_however_they_are_typed(
    bot: BotProcess, ada: Person, typed: str
) -> None:
    message = await result(await ada.slash("imagine", prompt=typed))
    assert prompt_of(message) == "a fox"
    assert seeds_of(message) == [7, 8]
    assert " · 5 steps · " in facts_of(message)
    assert sizes_of(message) == [(320, 176), (320, 176)]


async def test_a_flag_wins_over_the_option(bot: BotProcess, ada: Person) -> None:
    message = await result(
        await ada.slash("imagine", prompt="a cat --seed 7 --n 1", seed=9, count=3, steps=4)
    )
    assert seeds_of(message) == [7]
    assert " · 4 steps · " in facts_of(message)


async def test_of_two_alike_the_last_one_counts(bot: BotProcess, ada: Person) -> None:
    assert seeds_of(await result(await ada.slash("imagine", prompt="a cat --seed 7 --seed 8"))) == [8]


@pytest.mark.parametrize(
    "typed", ["a fox \u2014 running", "well\u2014known fox", "a fox -- running", "3 - 2 = 1", "x-ray --"]
)
async def test_a_dash_that_is_no_flag_stays_in_the_prompt(bot: BotProcess, ada: Person, typed: str) -> None:
    assert prompt_of(await result(await ada.slash("imagine", prompt=typed))) == typed


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("a fox --v 6", "I do not know the flag --v."),
        ("a fox --no cats", "I do not know the flag --no."),
        ("a fox \u2014stylize 100", "I do not know the flag --stylize."),
        ("a fox --seed", "--seed needs a proper value."),
        ("a fox --seed --n 2", "--seed needs a proper value."),
        ("a fox --seed abc", "--seed abc needs a proper value."),
        ("a fox --n 2.5", "--n 2.5 needs a proper value."),
        ("a fox --seed \u0661", "--seed \u0661 needs a proper value."),  # a digit, but not one of ours
    ],
)
async def test_an_unknown_or_broken_flag_is_refused_with_the_list_of_known_ones(
    bot: BotProcess, desk: Desk, ada: Person, typed: str, told: str
) -> None:
    drawn = len(desk.pictures)
    handle = await ada.slash("imagine", prompt=typed)
    text = await refusal(handle)
    assert text.startswith(told)
    assert "--ar 16:9, --seed 7, --n 4, --steps 8" in text
    assert job_for(bot, handle) is None
    assert len(desk.pictures) == drawn


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("a fox --seed -1", "Seed -1 is out of range: take a whole number from 0 to 4294967295."),
        ("a fox --seed 4294967296", "Seed 4294967296 is out of range"),
        ("a fox --n 0", "0 pictures cannot be drawn at once: take 1 to 4."),
        ("a fox --n 5", "5 pictures cannot be drawn at once: take 1 to 4."),
        ("a fox --steps 0", "0 steps cannot be done: take 1 to 50"),
        ("a fox --steps 1000", "1000 steps cannot be done: take 1 to 50"),
        (
            "a fox --ar 5:4",
            "\u201c5:4\u201d is not a shape I know. Choose one of 1:1, 4:3, 3:2, 16:9, 21:9, 3:4, 2:3, 9:16, 9:21.",
        ),
        ("--seed 7", "The prompt has no visible text."),
    ],
)
async def test_a_value_out_of_range_is_refused_with_the_range(
    bot: BotProcess, ada: Person, typed: str, told: str
) -> None:
    assert (await refusal(await ada.slash("imagine", prompt=typed))).startswith(told)
