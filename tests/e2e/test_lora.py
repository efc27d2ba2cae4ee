"""LoRA files in the bot's directory, from the form to the details; what they do to a picture is the engine's."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bot_process import BotProcess
from tests.e2e.scene import E2E, files_of, in_state, job_for, job_of, prompt_of, refusal, result
from zbot.images import read_recipe
from zbot.sandbox.people import Handle, Person
from zbot.sandbox.world import Message

pytestmark = E2E


@pytest.fixture(autouse=True)
def directory(bot: BotProcess) -> Iterator[Path]:
    """The bot's LoRA files; they may come while it runs."""
    directory = bot.data_dir / "loras"
    directory.mkdir(exist_ok=True)
    for name in ("Ink", "my style", "水墨"):
        (directory / f"{name}.safetensors").touch()
    (bot.data_dir / "outside.safetensors").touch()
    yield directory
    for path in directory.iterdir():
        path.unlink()


async def drawn_with(bot: BotProcess, handle: Handle) -> tuple[str, float]:
    """Wait for a job's end and return its LoRA."""
    made = await in_state(bot, handle, "delivered")
    return made["lora"], made["lora_scale"]


async def a_result(person: Person, prompt: str = "a fox in ink") -> Message:
    return await result(await person.slash("imagine", prompt=prompt, lora="ink:0.8", seed=7))


async def test_the_form_offers_the_files_that_there_are_now(ada: Person, directory: Path) -> None:
    async def offered(typed: str) -> list[str]:
        return [choice["value"] for choice in await ada.autocomplete("imagine", prompt="a fox", lora=typed)]

    assert await offered("") == ["Ink", "my_style", "水墨"]
    assert await offered("INK:0.5") == ["Ink"]
    (directory / "later.safetensors").touch()
    assert await offered("l") == ["later", "my_style"]
    for number in range(40):
        (directory / f"many{number:02}.safetensors").touch()
    assert len(await offered("many")) == 25


@pytest.mark.parametrize(
    ("typed", "option", "drawn"),
    [
        ("a fox", "ink", ("Ink", 1.0)),
        ("a fox", "INK:0.8", ("Ink", 0.8)),
        ("a fox --lora ink:-2", None, ("Ink", -2.0)),
        (
            "a fox --lora 水墨\uff1a0.5",
            "ink",
            ("水墨", 0.5),
        ),  # the flag wins, and a Chinese keyboard's colon is one
        ("a fox --lora my_style", None, ("my_style", 1.0)),
        ("a fox", None, ("", 1.0)),
    ],
)
async def test_option_and_flag_reach_the_job_and_the_picture(
    bot: BotProcess, ada: Person, typed: str, option: str | None, drawn: tuple[str, float]
) -> None:
    handle = await ada.slash("imagine", prompt=typed, **({"lora": option} if option else {}))
    message = await result(handle)
    assert prompt_of(message) == "a fox"
    assert await drawn_with(bot, handle) == drawn
    recipe = read_recipe(files_of(message)[0])
    assert (recipe.lora, recipe.lora_scale) == drawn


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ("oil", "There is no LoRA “oil”. These there are: Ink, my_style, 水墨"),
        ("../outside", "There is no LoRA “../outside”. These there are:"),
        ("ink:strong", "“ink:strong” is no LoRA with a strength: write it like name or name:0.8."),
        ("ink:5", "The LoRA strength 5 is out of range: take -4 to 4;"),
    ],
)
async def test_what_there_is_not_is_refused_to_its_person_alone(
    bot: BotProcess, ada: Person, lora: str, told: str
) -> None:
    handle = await ada.slash("imagine", prompt="a fox", lora=lora)
    assert (await refusal(handle)).startswith(told)
    assert job_for(bot, handle) is None


async def test_without_any_file_that_is_what_is_said(bot: BotProcess, bo: Person, directory: Path) -> None:
    await asyncio.to_thread(lambda: [path.unlink() for path in directory.iterdir()])
    assert "ZBOT_LORA_DIR" in await refusal(await bo.slash("imagine", prompt="a fox --lora ink"))


async def test_reroll_and_edit_keep_it_and_a_flag_changes_it(
    bot: BotProcess, ada: Person, bo: Person
) -> None:
    first = await a_result(ada)
    assert await drawn_with(bot, await bo.press(first, "Re-roll")) == ("Ink", 0.8)
    form = await (await ada.press(first, "Edit")).modal()
    unchanged = await ada.submit(form)
    assert files_of(await result(unchanged)) == files_of(first)
    assert await drawn_with(bot, unchanged) == ("Ink", 0.8)
    form = await (await ada.press(first, "Edit")).modal()
    prompt = next(label["component"] for label in form.form["components"] if label["label"] == "Prompt")
    changed = await ada.submit(form, {prompt["custom_id"]: "a fox --lora my_style:2"})
    assert await drawn_with(bot, changed) == ("my_style", 2.0)


async def test_details_show_it_and_what_they_offer_draws_the_same_picture(
    bot: BotProcess, ada: Person
) -> None:
    first = await a_result(ada)
    message = await (await ada.press(first, "Details")).message()
    fields = {field["name"]: field["value"] for field in message.embeds[0]["fields"]}
    assert fields["LoRA"] == "`Ink:0.8`"
    command = fields["To draw it again"].strip("`\n").removeprefix("/imagine prompt:")
    again = await result(await ada.slash("imagine", prompt=command))
    assert files_of(again) == files_of(first) and job_of(again) != job_of(first)
