"""What the line costs as the history grows: submit, claim, and finding one's place."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.tables import Table, percentile, say
from zbot import policy
from zbot.job import Origin
from zbot.queue import Queue
from zbot.request import ImageRequest
from zbot.store import Store

HISTORY = (100, 1_000, 10_000, 100_000)
PEOPLE = 200
REPEATS = 200
WAITING = 50  # in line while the costs are measured
REQUEST = ImageRequest(prompt="a lighthouse at dusk", seed=1, width=1024, height=1024)

_PAST = """
WITH RECURSIVE past (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM past WHERE number < :rows)
INSERT INTO job (state, interaction_id, application_id, user_id, guild_id, channel_id, locale, attachment_limit_bytes,
                 prompt, seed, steps, guidance_scale, width, height, num_images, cost, start_tag, finish_tag,
                 created_at, started_at, ended_at, told_at, gpu_s, message_id)
SELECT 'delivered', -number, 1, number % :people, 1, 1, 'en-US', 10485760,
       'a lighthouse at dusk', number, 8, 0.0, 1024, 1024, 1, 8388608, 0, number,
       number, number + 1, number + 2, number + 3, 1.2, number FROM past
"""
_PAST_USAGE = """
INSERT INTO usage SELECT id, user_id, guild_id, channel_id, 1, 1048576, steps, gpu_s, 1.0, 'tiny', created_at FROM job
"""


async def measure(rows: int) -> tuple[str | float | int, ...]:
    """Return the medians in ms on a history of so many rows."""
    say(f"queue: {rows:,} rows of history")
    with tempfile.TemporaryDirectory() as name:
        async with Store(Path(name) / "zbot.db") as store:

            def fill(connection: object) -> None:
                connection.execute(_PAST, {"rows": rows, "people": PEOPLE})  # type: ignore[attr-defined]
                connection.execute(_PAST_USAGE)  # type: ignore[attr-defined]

            await store._writer.write(fill)
            queue = Queue(store, policy.Limits(per_person=10_000, in_all=10_000))
            number = 0

            async def submit() -> None:
                nonlocal number
                number += 1
                origin = Origin(
                    interaction_id=number, interaction_token="token", application_id=1, user_id=number % PEOPLE,
                    guild_id=1, channel_id=1, locale="en-US", attachment_limit_bytes=1,
                )  # fmt: skip
                await queue.submit(REQUEST, origin)

            async def claim() -> None:
                job = await queue.claim()
                spent_s.append(-time.perf_counter())
                await store.complete(job.id, gpu_s=1.0, model="tiny", unused_prompt="")
                await store.delivered(job.id, 1)
                queue.left_card(job, gpu_s=1.0)
                spent_s[-1] += time.perf_counter()

            spent_s: list[float] = []
            for _ in range(WAITING):
                await submit()
            submit_ms = await _median_ms(submit)
            line_ms = await _median_ms(queue.line)
            claim_ms = await _median_ms(claim)
            rest_ms = percentile(spent_s, 50) * 1000
            me = 1
            usage_ms = await _median_ms(lambda: store.usage(me, None))
    return (rows, submit_ms, claim_ms - rest_ms, rest_ms, line_ms, usage_ms)


async def _median_ms(act: Callable[[], Awaitable[object]]) -> float:
    times_ms: list[float] = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        await act()
        times_ms.append((time.perf_counter() - began) * 1000)
    return percentile(times_ms, 50)


async def _all() -> Table:
    rows = [await measure(rows) for rows in HISTORY]
    return Table(
        title="What the line costs as the history grows, medians in ms",
        columns=(
            "rows of history",
            "submit, with place",
            "claim",
            "complete + delivered",
            "whole line",
            "usage of one",
        ),
        rows=tuple(rows),
        note=f"{WAITING} to {WAITING + REPEATS} jobs wait meanwhile; every change is committed with synchronous=FULL.",
    )


def main() -> list[Table]:
    """Measure at every length."""
    return [asyncio.run(_all())]
