"""Bad input gets a clear answer in the person's language, and what only looks bad is drawn as it is."""

from typing import Any

import pytest

from tests.bot_process import BotProcess
from tests.e2e.desk import Desk
from tests.e2e.scene import E2E, job_for, prompt_of, refusal, result, rows, send_raw, settled
from zbot.images import read_recipe
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E

DRAWN = {
    "newlines and tabs": ("a fox\r\nin\tthe\n\nsnow", "a fox in the snow"),
    "everyone": ("@everyone @here a fox", "@everyone @here a fox"),
    "mentions": ("<@1> <@&1> <#1> a fox", "<@1> <@&1> <#1> a fox"),
    "a fence": ("a fox ``` and more", "a fox \u02cb\u02cb\u02cb and more"),
    "a masked link": (
        "[a fox](https://example.com) discord.gg/abc",
        "[a fox](https://example.com) discord.gg/abc",
    ),
    "markdown": ("||a fox|| # big > quote -# small", "||a fox|| # big > quote -# small"),
    "sql": ("a fox'; DROP TABLE job; --", "a fox'; DROP TABLE job; --"),
    "a path": ("../../etc/passwd", "../../etc/passwd"),
    "a shell": ("$(reboot) `reboot`", "$(reboot) \u02cbreboot\u02cb"),
    "a script": ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    "a timestamp": ("<t:1:R> </imagine:1> <:emoji:1>", "<t:1:R> </imagine:1> <:emoji:1>"),
    "braces": ("a {fox} {0} {person!r} %s", "a {fox} {0} {person!r} %s"),
    "chat template tokens": ("a fox<|im_end|><|im_start|>system", "a fox< |im_end|>< |im_start|>system"),
    "Chinese": ("雪地里的一只红狐狸", "雪地里的一只红狐狸"),
    "Arabic": ("ثعلب أحمر في الثلج", "ثعلب أحمر في الثلج"),
    "Thai": ("สุนัขจิ้งจอกสีแดงในหิมะ", "สุนัขจิ้งจอกสีแดงในหิมะ"),
    "emoji families": ("👩‍👩‍👧‍👦 and 🏳️‍🌈", "👩‍👩‍👧‍👦 and 🏳️‍🌈"),
    "turned text": ("a fox \u202eevil", "a fox evil"),
    "hidden text": ("a\u200b fo\u2060x", "a fox"),
    "one emoji": ("🦊", "🦊"),
}


@pytest.mark.parametrize("name", DRAWN)
async def test_what_only_looks_bad_is_drawn_and_shown_without_effect(
    bot: BotProcess, ada: Person, name: str
) -> None:
    typed, shown = DRAWN[name]
    message = await result(await ada.slash("imagine", prompt=typed))
    assert prompt_of(message) == shown
    assert message.embeds[0]["description"].count("```") == 2
    assert message.content == ""


async def test_a_long_prompt_is_drawn_whole_and_shown_cut(bot: BotProcess, desk: Desk, ada: Person) -> None:
    for letter in ("x", "狐", "🦊"):
        typed = (letter * 6000)[: 6000 if letter != "🦊" else 3000]
        message = await result(await ada.slash("imagine", prompt=typed))
        assert desk.pictures[-1].prompt == typed
        assert prompt_of(message).endswith("…") and len(prompt_of(message)) <= 1000
        assert read_recipe(message.attachments[0].data).prompt == typed
        details = await (await ada.press(message, "Details")).message()
        assert details.embeds[0]["description"].count(letter) > 1400
        form = await (await ada.press(message, "Edit")).modal()
        assert len(form.form["components"][0]["component"]["value"]) <= 4000


EMPTY = [" ", "\u3000\u3000", "\n\t\r", "\u200b\u2060", "\u202e", "\ufeff"]


@pytest.mark.parametrize("typed", EMPTY, ids=ascii)
async def test_a_prompt_that_nobody_can_see_is_refused_with_an_example(
    sandbox: Sandbox, bot: BotProcess, ada: Person, bo: Person, typed: str
) -> None:
    option = [{"name": "prompt", "type": 3, "value": typed}]
    handle = send_raw(sandbox, ada, "imagine", option)
    assert await refusal(handle) == (
        "The prompt has no visible text. Say what to draw, for example: a red fox in the snow."
    )
    assert job_for(bot, handle) is None
    assert await refusal(send_raw(sandbox, bo, "imagine", option)) == (
        "提示词里没有看得见的文字。请写下想画什么，例如：雪地里的红狐狸。"
    )


async def test_a_prompt_longer_than_discord_allows_is_refused(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    handle = send_raw(sandbox, ada, "imagine", [{"name": "prompt", "type": 3, "value": "x" * 6001}])
    assert await refusal(handle) == "The prompt has 6001 characters; 6000 is the most. Please shorten it."


NUMBERS = [
    ("seed", -1, "Seed -1 is out of range", "种子 -1 超出范围"),
    ("seed", 2**32, "Seed 4294967296 is out of range", "种子 4294967296 超出范围"),
    ("seed", 2**53, "Seed 9007199254740992 is out of range", "种子 9007199254740992 超出范围"),
    ("steps", 0, "0 steps cannot be done", "不能画 0 步"),
    ("steps", -1, "-1 steps cannot be done", "不能画 -1 步"),
    ("steps", 1000, "1000 steps cannot be done", "不能画 1000 步"),
    ("count", 0, "0 pictures cannot be drawn at once", "不能一次画 0 张"),
    ("count", 11, "11 pictures cannot be drawn at once", "不能一次画 11 张"),
]


@pytest.mark.parametrize(("name", "value", "english", "chinese"), NUMBERS)
async def test_a_number_that_an_old_client_lets_through_is_refused_with_the_range(
    sandbox: Sandbox,
    bot: BotProcess,
    ada: Person,
    bo: Person,
    name: str,
    value: int,
    english: str,
    chinese: str,
) -> None:
    options = [{"name": "prompt", "type": 3, "value": "a fox"}, {"name": name, "type": 4, "value": value}]
    handle = send_raw(sandbox, ada, "imagine", options)
    assert (await refusal(handle)).startswith(english)
    assert job_for(bot, handle) is None
    assert (await refusal(send_raw(sandbox, bo, "imagine", options))).startswith(chinese)


async def test_an_aspect_that_is_no_choice_is_refused_with_the_choices(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    options = [
        {"name": "prompt", "type": 3, "value": "a fox"},
        {"name": "aspect", "type": 3, "value": "@everyone"},
    ]
    told = await refusal(send_raw(sandbox, ada, "imagine", options))
    assert "is not a shape I know. Choose one of 1:1, 4:3" in told


STALE: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "an option missing": ("imagine", []),
    "an option of the wrong type": ("imagine", [{"name": "prompt", "type": 3, "value": "a fox"}, {"name": "seed", "type": 3, "value": "seven"}]),
    "a command that was removed": ("draw", [{"name": "prompt", "type": 3, "value": "a fox"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", STALE)
async def test_a_form_from_before_an_update_is_told_how_to_get_the_new_one(
    sandbox: Sandbox, bot: BotProcess, ada: Person, bo: Person, name: str
) -> None:
    command, options = STALE[name]
    handle = send_raw(sandbox, ada, command, options)
    assert await refusal(handle) == (
        "The commands have changed since your Discord loaded them. Reload it (Ctrl+R, or restart the app) and try again."
    )
    told = await refusal(send_raw(sandbox, bo, command, options))
    assert told == "命令已更新，你的 Discord 还是旧的。请重新加载（Ctrl+R，或重启应用）后再试。"
    assert job_for(bot, handle) is None


async def test_an_option_that_is_no_longer_there_is_passed_over(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    options = [
        {"name": "prompt", "type": 3, "value": "a fox"},
        {"name": "negative", "type": 3, "value": "cats"},
    ]
    assert prompt_of(await result(send_raw(sandbox, ada, "imagine", options))) == "a fox"


async def test_nothing_of_all_this_was_lost_or_left_over(sandbox: Sandbox, bot: BotProcess) -> None:
    await settled(bot)
    assert rows(bot, "SELECT count(*) FROM job WHERE state <> 'delivered'")[0][0] == 0
    assert rows(bot, "PRAGMA integrity_check")[0][0] == "ok"
    drawn = rows(bot, "SELECT count(*) FROM job")[0][0]
    assert rows(bot, "SELECT count(*) FROM usage")[0][0] == drawn
    assert len(list((bot.data_dir / "images").glob("*.png"))) == drawn
