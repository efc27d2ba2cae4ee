"""How much memory the bot and its engine take, and how long they take to start."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.running import ROOT, running_bot
from benchmarks.tables import Table, percentile, say

HELP_RUNS = 7
PICTURES = 12
MB = 1024 * 1024


def resident_mb(process_id: int) -> tuple[float, float]:
    """Return what a process holds in memory now, and the most it ever held."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    facts = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(facts["VmRSS"].split()[0]) * 1024 / MB, int(facts["VmHWM"].split()[0]) * 1024 / MB


async def measure_processes() -> list[Table]:
    """Return the tables of memory and of the start."""
    say("memory: the bot and its engine")
    async with running_bot() as bot:
        online_s = time.monotonic() - bot.began
        ready_s = await bot.engine_ready()
        asked = time.monotonic()
        ada = bot.sandbox.person("Ada")
        for number in range(PICTURES):
            handle = await ada.slash("imagine", prompt=f"boat {number}", seed=number)
            await handle.message(
                lambda message: any(a.filename.endswith(".png") for a in message.attachments), timeout_s=120
            )
            if number == 0:
                first_s = time.monotonic() - asked
        child = bot.child()
        rows = [("bot", *resident_mb(bot.process.pid), 150)]
        if child is not None:
            rows.append(("engine with the tiny model", *resident_mb(child), 800))
    memory = Table(
        title=f"Memory after {PICTURES} pictures",
        columns=("process", "now MB", "most MB", "limit MB"),
        rows=tuple(rows),
        note="Resident set size; Chinese and English catalogues, one server.",
    )
    start = Table(
        title="The start",
        columns=("until", "seconds"),
        rows=(
            ("`bot.py --help` has answered (median)", measure_help()),
            ("the bot hears people", online_s),
            ("the engine is ready", ready_s),
            ("the first picture stands in the channel, from then", first_s),
        ),
    )
    return [memory, start]


def measure_help() -> float:
    """Return the median time of `bot.py --help` in seconds."""
    times_s: list[float] = []
    for _ in range(HELP_RUNS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "bot.py", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        times_s.append(time.perf_counter() - began)
    return percentile(times_s, 50)


def main() -> list[Table]:
    """Measure."""
    return asyncio.run(measure_processes())
