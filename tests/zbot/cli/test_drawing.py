"""The command line with the real engine and the tiny model: the bot's bytes, a killed batch, a terminal."""

import asyncio
import json
import os
import pty
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.bot_process import PATIENCE_S, REPOSITORY
from zbot import images, weights
from zbot.cli.batch import Asked, pictures_of
from zbot.cli.compare import Original, compare
from zbot.cli.drawing import Display, Easel, shown
from zbot.cli.output import Output
from zbot.config import load_settings
from zbot.engine.process import ProcessEngine
from zbot.engine.start import process_engine
from zbot.images import Recipe
from zbot.request import ImageRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

APPLE = ImageRequest(prompt="a red apple", seed=40, width=128, height=128)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessEngine]:
    """The engine as bot.py makes it, with the preview; loaded."""
    settings = load_settings(needs_token=False).model_copy(update={"model": "tiny"})
    engine = process_engine(settings, weights.locate("tiny", tmp_path_factory.mktemp("cache")))
    await engine.load(lambda _: None)
    yield engine
    await engine.close()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "zbot", "generate", "--width", "128", "--height", "128", *arguments]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "DISCORD_TOKEN"} | {
        "PYTHONPATH": str(REPOSITORY),
        "ZBOT_MODEL": "tiny",
        "ZBOT_DATA_DIR": str(tmp_path / "data"),
    }


async def test_a_batch_that_is_killed_goes_on_where_it_stopped_with_the_bytes_of_the_bot(
    engine: ProcessEngine, here: Path, environment: dict[str, str]
) -> None:
    prompts = here / "prompts.txt"
    prompts.write_text("\n".join(f"a red apple --seed {seed}" for seed in range(40, 52)))
    arguments = command("--prompts", "prompts.txt", "--json", "-o", "out/{seed}.png")

    # On a terminal for errors and a pipe for results, as in `… --json > file`: the bar is not among the results.
    terminal, errors = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=errors
    )
    os.close(errors)
    # A terminal that nobody reads fills up and stops whoever writes to it.
    shown_there = asyncio.create_task(asyncio.to_thread(_read_all, terminal))
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            first = json.loads(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()
    assert b"picture 1 of 12" in await shown_there
    assert first["file"] == "out/40.png"
    done_before = {path.name: path.stat().st_mtime_ns for path in (here / "out").glob("*.png")}
    assert 1 <= len(done_before) < 12
    for path in (here / "out").glob("*.png"):
        images.safe_open(path.read_bytes())  # whole, whenever the kill came

    # The next run, with the engine that is loaded here.
    wanted = [
        pictures_of(Asked(prompt=f"a red apple --seed {seed}", width=128, height=128), 256)[0]
        for seed in range(40, 52)
    ]
    files = weights.locate("tiny", here)
    plan = Output(pattern="out/{seed}.png").plan(wanted, resume=True, files=files)
    missing = [picture for picture in plan if not picture.is_there]
    assert len(missing) == 12 - len(done_before)
    with shown() as display:
        await Easel(engine=engine, display=display).draw(missing[:2])
    for name, written in done_before.items():
        assert (here / "out" / name).stat().st_mtime_ns == written

    # The bot's engine shows previews, the command line's does not; the files are the same.
    bots = await engine.draw(APPLE, lambda _: None)
    assert (here / "out/40.png").read_bytes() == bots.png
    others = await engine.draw(missing[0].request, lambda _: None)
    assert missing[0].path.read_bytes() == others.png


async def test_a_reencoded_copy_still_says_how_it_was_made_and_is_equal_within_tolerance(
    engine: ProcessEngine,
) -> None:
    card = await engine.load(lambda _: None)
    png = (await engine.draw(APPLE, lambda _: None)).png
    copy, suffix = images.fit(png, len(png) - 1)
    recipe = images.read_recipe(copy)
    assert suffix == ".webp" and recipe == images.read_recipe(png) and recipe.to_request() == APPLE
    again = (await engine.draw(recipe.to_request(), lambda _: None)).png
    verdict = compare(Original.of(copy, recipe), again, Recipe.of(APPLE, card))
    assert verdict.word == "equal within tolerance" and "re-encoded" in verdict.sentence
    other = (
        await engine.draw(ImageRequest(prompt="a blue car", seed=1, width=128, height=128), lambda _: None)
    ).png
    assert compare(Original.of(copy, recipe), other, Recipe.of(APPLE, card)).word == "different"


async def test_pictures_are_drawn_overlapping_and_in_order(
    engine: ProcessEngine, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = pictures_of(Asked(prompt="a red apple", seed=40, count=4, width=128, height=128, steps=2), 256)
    with shown() as display:
        assert isinstance(display, Display)
        easel = Easel(engine=engine, display=display)
        await easel.draw(Output(pattern="{seed}.png").plan(wanted))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{seed}.png" for seed in range(40, 44)]
    assert not easel.failures


def _read_all(terminal: int) -> bytes:
    said = b""
    try:
        while piece := os.read(terminal, 65536):
            said += piece
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    return said
