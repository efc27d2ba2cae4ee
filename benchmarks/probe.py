"""`bot.py` with a probe in its event loop: how late is a timer, while the engine loads, draws, or nothing happens.

python -m benchmarks.probe      run with the same environment as bot.py, and
BENCH_LAG=FILE                  write the probe's findings there when the bot ends
BENCH_PROFILE=FILE              write a cProfile of the event loop's thread there
"""

import asyncio
import cProfile
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import bot
from zbot.generator import EngineState, Generator

EVERY_S = 0.005


class Probe:
    """Sleeps a little again and again, and notes by how much too long each sleep was."""

    def __init__(self) -> None:
        self._generator: Generator | None = None
        self.late_ms: dict[str, list[float]] = defaultdict(list)

    def watch(self, generator: Generator) -> None:
        self._generator = generator

    def _phase(self) -> str:
        if self._generator is None or self._generator.status.state is not EngineState.READY:
            return "loading"
        return "drawing" if self._generator._drawing else "idle"

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            phase, due = self._phase(), loop.time() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self.late_ms[phase].append((loop.time() - due) * 1000)


async def run(settings: Any) -> None:
    """Run the bot with the probe beside it."""
    probe, generate = Probe(), Generator.run

    async def watched(self: Generator) -> None:
        probe.watch(self)
        await generate(self)

    Generator.run = watched  # type: ignore[method-assign]
    task = asyncio.create_task(probe.run())
    profile = cProfile.Profile() if "BENCH_PROFILE" in os.environ else None
    if profile:
        profile.enable()
    try:
        await bare_run(settings)
    finally:
        task.cancel()
        if profile:
            profile.disable()
            profile.dump_stats(os.environ["BENCH_PROFILE"])
        if path := os.environ.get("BENCH_LAG"):
            Path(path).write_text(json.dumps(probe.late_ms))


if __name__ == "__main__":
    bare_run, bot.run = bot.run, run
    sys.argv[:] = ["bot.py"]
    sys.exit(bot.main())
