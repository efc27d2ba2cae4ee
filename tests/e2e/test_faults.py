"""What is wrong with the model's files is told by the bot that stays up, and mended under it without a restart."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import StartBot, Watch
from tests.e2e.scene import E2E, has_pictures, in_state, job_for, seeds_of
from tests.e2e.test_real import LOADED_S
from zbot import weights
from zbot.sandbox.people import Person

pytestmark = E2E

TINY = Path(weights.__file__).parent.parent / "models" / "tiny"
MENDED_S = 2 * LOADED_S  # with the pause before the next try
SHARD = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny model as a directory of somebody's own."""
    return shutil.copytree(TINY, tmp_path / "model")


def cut_a_shard(model: Path) -> None:
    os.truncate(model / SHARD, 1_000_000)


def change_the_shape(model: Path) -> None:
    config = json.loads((model / "transformer/config.json").read_text())
    (model / "transformer/config.json").write_text(json.dumps(config | {"n_layers": config["n_layers"] + 1}))


def mend(model: Path) -> None:
    shutil.copytree(TINY, model, dirs_exist_ok=True)


async def state_of(person: Person) -> str:
    """Return what /status says of the engine."""
    message = await (await person.slash("status")).message()
    return next(field["value"] for field in message.embeds[0]["fields"] if field["name"] == "Engine")


async def told(person: Person, text: str) -> str:
    """Ask for the engine's state until it contains this text; a try to load may be under way just now."""
    while text not in (state := await state_of(person)):
        pass
    return state


async def test_a_bot_that_starts_with_a_bad_model_says_so_and_draws_once_it_is_mended(
    start_bot: StartBot, ada: Person, mo: Person, watched: Watch, model: Path
) -> None:
    says = "its config.json and its weights do not belong together"
    watched.may_fail += ["the engine is not available"]
    change_the_shape(model)
    bot = await start_bot(real=True, ZBOT_MODEL=str(model))
    line = await bot.logged("the engine is not available", within_s=LOADED_S)
    assert says in line and str(model) in line
    handle = await ada.slash("imagine", prompt="a red circle on blue", seed=3)
    await in_state(bot, handle, "queued")
    assert says in await told(mo, "not available")
    mend(model)
    assert seeds_of(await handle.message(has_pictures, timeout_s=MENDED_S)) == [3]
    assert await state_of(mo) == "ready"
    assert job_for(bot, handle)["attempts"] == 0


async def test_a_shard_cut_while_the_bot_runs_is_told_at_the_next_load_and_costs_no_job(
    start_bot: StartBot, ada: Person, mo: Person, watched: Watch, model: Path
) -> None:
    watched.may_fail += ["the engine is not available"]
    says = f"{SHARD} is damaged"
    bot = await start_bot(real=True, ZBOT_MODEL=str(model))
    await bot.logged("the engine is ready", within_s=LOADED_S)
    cut_a_shard(model)
    (child,) = bot.children()
    handle = await ada.slash("imagine", prompt="a red circle on blue", seed=4, steps=20)
    await in_state(bot, handle, "running")
    os.kill(child, signal.SIGKILL)
    assert says in await bot.logged("the engine is not available", within_s=LOADED_S)
    assert says in await told(mo, "not available")
    mend(model)
    assert seeds_of(await handle.message(has_pictures, timeout_s=MENDED_S)) == [4]


async def test_a_model_in_the_cache_that_was_never_fetched_is_named_with_its_command_and_the_bot_stays(
    start_bot: StartBot, mo: Person, watched: Watch
) -> None:
    watched.may_fail += ["the engine is not available"]
    bot = await start_bot(real=True, ZBOT_MODEL="Tongyi-MAI/Z-Image-Turbo")
    line = await bot.logged("the engine is not available")
    assert "python -m zbot weights fetch" in line
    assert "python -m zbot weights fetch" in await told(mo, "not available")
