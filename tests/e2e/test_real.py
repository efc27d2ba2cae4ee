"""The whole bot with its real engine: the tiny model in the real child process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.bot_process import BotProcess
from tests.e2e.scene import (
    E2E,
    files_of,
    has_pictures,
    in_state,
    job_for,
    result,
    seeds_of,
    settled,
    sizes_of,
)
from zbot.images import read_recipe
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E
LOADED_S = 60.0  # torch on a busy machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real_bot(
    sandbox: Sandbox, bots: list[BotProcess], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[BotProcess]:
    """One bot with the tiny model for all tests of this module."""
    bot = BotProcess(tmp_path_factory.mktemp("real"), sandbox=sandbox)
    bots.append(bot)
    try:
        await bot.start()
        await bot.logged("the engine is ready", within_s=LOADED_S)
        yield bot
    finally:
        await bot.close()


def memory_mb(pid: int) -> float:
    """Return the most memory that a process has had, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


async def test_three_pictures_are_each_the_same_bytes_as_alone(real_bot: BotProcess, ada: Person) -> None:
    together = await result(await ada.slash("imagine", prompt="a red circle on blue", seed=100, count=3))
    assert seeds_of(together) == [100, 101, 102]
    assert sizes_of(together) == [(256, 256)] * 3
    assert len(set(files_of(together))) == 3
    for index, picture in enumerate(files_of(together)):
        alone = await result(await ada.slash("imagine", prompt="a red circle on blue", seed=100 + index))
        assert files_of(alone) == [picture]


async def test_the_recipe_in_the_posted_file_is_what_was_drawn(real_bot: BotProcess, ada: Person) -> None:
    message = await result(await ada.slash("imagine", prompt="a green square --ar 16:9 --seed 5 --steps 4"))
    recipe = read_recipe(files_of(message)[0])
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.model) == ("a green square", 5, 4, "tiny")
    assert (recipe.width, recipe.height) == sizes_of(message)[0] == (320, 176)
    assert recipe.guidance_scale == 0.0
    assert recipe.revision and "torch" in recipe.versions and "diffusers" in recipe.versions


async def test_a_prompt_longer_than_the_model_reads_is_drawn_and_the_rest_named(
    real_bot: BotProcess, ada: Person
) -> None:
    words = " ".join(f"word{number}" for number in range(700))
    handle = await ada.slash("imagine", prompt=f"{words} and the end")
    message = await result(handle)
    assert "this part was not used: “" in message.text
    assert job_for(real_bot, handle)["unused_prompt"].endswith("and the end")


async def test_the_bots_own_process_stays_small_and_never_loads_the_model(
    sandbox: Sandbox, real_bot: BotProcess, ada: Person
) -> None:
    await result(await ada.slash("imagine", prompt="small", count=2))
    (child,) = real_bot.children()
    assert memory_mb(real_bot.pid) < 150
    assert memory_mb(child) < 800
    mapped = Path(f"/proc/{real_bot.pid}/maps").read_text()
    assert "libtorch" not in mapped
    assert "libtorch" in Path(f"/proc/{child}/maps").read_text()
    seen = Path(f"/proc/{child}/environ").read_bytes()
    assert b"DISCORD_TOKEN" not in seen and sandbox.token.encode() not in seen


async def test_a_running_picture_is_stopped_and_the_card_is_free_for_the_next(
    sandbox: Sandbox, real_bot: BotProcess, ada: Person
) -> None:
    handle = await ada.slash("imagine", prompt="taken back", steps=50, count=4)
    await in_state(real_bot, handle, "running")
    await ada.press(await handle.message(), "Cancel")
    await handle.message(lambda message: message.content == "Taken back.")
    message = await result(await ada.slash("imagine", prompt="after it", seed=1))
    assert seeds_of(message) == [1]
    assert job_for(real_bot, handle)["state"] == "cancelled"


async def test_the_death_of_the_engine_costs_people_a_pause_and_gives_the_same_picture(
    sandbox: Sandbox, real_bot: BotProcess, ada: Person
) -> None:
    expected = files_of(await result(await ada.slash("imagine", prompt="survives", seed=8, steps=20)))
    handle = await ada.slash("imagine", prompt="survives", seed=8, steps=20)
    await in_state(real_bot, handle, "running")
    (child,) = real_bot.children()
    os.kill(child, signal.SIGKILL)
    assert await (await ada.slash("queue")).acknowledged() < 2.5
    message = await handle.message(has_pictures, timeout_s=LOADED_S)
    assert files_of(message) == expected
    assert job_for(real_bot, handle)["attempts"] <= 1
    assert real_bot.children() != [child]


async def test_after_a_kill_of_the_bot_no_engine_is_left_and_the_next_life_draws_the_same_bytes(
    sandbox: Sandbox, real_bot: BotProcess, ada: Person
) -> None:
    before = files_of(await result(await ada.slash("imagine", prompt="twice", seed=21)))
    handle = await ada.slash("imagine", prompt="interrupted", seed=22, steps=50)
    await in_state(real_bot, handle, "running")
    (child,) = real_bot.children()
    await real_bot.kill()
    async with asyncio.timeout(30):
        while (
            Path(f"/proc/{child}").exists() and "Z (zombie)" not in Path(f"/proc/{child}/status").read_text()
        ):
            await asyncio.sleep(0.05)  # somebody else's process tells nobody of its end
    await real_bot.start()
    message = await handle.message(has_pictures, timeout_s=LOADED_S)
    assert seeds_of(message) == [22]
    assert files_of(await result(await ada.slash("imagine", prompt="twice", seed=21))) == before
    await settled(real_bot)


async def test_a_stop_while_it_draws_takes_under_twenty_seconds(
    real_bot: BotProcess, sandbox: Sandbox, ada: Person
) -> None:
    handle = await ada.slash("imagine", prompt="stopped", steps=50, count=4)
    await in_state(real_bot, handle, "running")
    (child,) = real_bot.children()
    code, took_s = await real_bot.terminate()
    assert (code, took_s < 20) == (0, True)
    assert not Path(f"/proc/{child}").exists()
    assert job_for(real_bot, handle)["state"] in ("queued", "delivered")
    assert job_for(real_bot, handle)["attempts"] == 0
