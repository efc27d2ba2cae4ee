"""Loads the model and draws one small picture, unless the bot has the card just now."""

import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager

from zbot import datadir, health
from zbot.config import Settings
from zbot.doctor.finding import Finding, bad, halves, note, ok
from zbot.engine import Engine
from zbot.errors import ConfigError, OutOfMemory, WeightsError, ZBotError
from zbot.request import build_request
from zbot.weights import ModelFiles
from zbot.weights.native import native_size

SLOW_STEP_S = 10.0


async def examine(
    settings: Settings, files: ModelFiles, make_engine: Callable[[Settings, ModelFiles], Engine]
) -> AsyncIterator[Finding]:
    """Say how the model lies in memory and how long a picture takes."""
    with _data_held(settings) as is_ours:
        if not is_ours:
            is_well, sentence = health.check(settings.data / "health.json")
            fact = f"not tried, the bot has the card. {sentence}"
            if is_well:
                yield ok("drawing", fact)
            else:
                yield note("drawing", fact, "Read its log.")
            return
        engine = make_engine(settings, files)
        try:
            async for finding in _draw(engine, files):
                yield finding
        except ZBotError as error:
            yield _failure(error)
        finally:
            await engine.close()


async def _draw(engine: Engine, files: ModelFiles) -> AsyncIterator[Finding]:
    began = time.monotonic()
    card = await engine.load(lambda _: None)
    loaded_s = time.monotonic() - began
    yield ok("placement", f"{card.placement} on {card.device} in {card.dtype}, loaded in {loaded_s:.1f} s")
    if card.dtype == "float8":
        yield note(
            "precision",
            "ZBOT_PRECISION=fp8 is lossy: pictures differ from those that bf16 draws",
            "Remove ZBOT_PRECISION for the model as it was trained.",
        )
    side = max(64, native_size(files.directory) // 2)
    request = build_request(
        prompt="a red fox", native_size=card.native_size, width=side, height=side, seed=1, steps=1
    )
    first = await engine.draw(request, lambda _: None)
    if first.gpu_s > SLOW_STEP_S:
        yield note(
            "speed",
            f"{first.gpu_s:.0f} s for one step of a picture of {side}x{side}",
            "Use a card, or ZBOT_MODEL=tiny to try the bot.",
        )
        return
    request = build_request(prompt="a red fox", native_size=card.native_size, width=side, height=side, seed=1)
    drawn = await engine.draw(request, lambda _: None)
    yield ok("speed", f"{drawn.gpu_s:.2f} s for a picture of {side}x{side} in {request.steps} steps")


@contextmanager
def _data_held(settings: Settings) -> Generator[bool]:
    """Hold the data directory for the time of a block, so that no bot starts beside us; False if one runs."""
    try:
        lock = datadir.locked(settings.data)
        lock.__enter__()
    except ConfigError:
        yield False
        return
    try:
        yield True
    finally:
        lock.__exit__(None, None, None)


def _failure(error: ZBotError) -> Finding:
    match error:
        case OutOfMemory():
            repair = "End other programs on the card, or set ZBOT_PLACEMENT or ZBOT_QUANTIZATION to something smaller."
        case WeightsError() | ConfigError():
            return bad("drawing", *halves(error))
        case _:
            repair = "Set ZBOT_COMPILE=off and try again; if that helps, please report it."
    return bad("drawing", str(error), repair)
