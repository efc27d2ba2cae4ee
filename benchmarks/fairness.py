"""One flooder with 200 jobs and five people with one each: how long does each of them wait?"""

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.tables import Table, percentile, say
from zbot import policy
from zbot.engine import Drawn, ModelCard, OnLoad, OnStep, Step
from zbot.generator import Generator
from zbot.job import Job, Origin
from zbot.queue import Queue
from zbot.request import ImageRequest
from zbot.store import Store

FLOOD = 200
LIGHT_USERS = 5
PICTURE_S = 0.02
STEPS = 8
FLOODER = 1


class TimedEngine:
    """Takes the same time for every step and draws nothing: the line is measured, not the card."""

    async def load(self, on_progress: OnLoad) -> ModelCard:
        return ModelCard(
            model="timed", revision="", dtype="float32", device="none", placement="resident", native_size=256
        )

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        for number in range(1, request.steps + 1):
            await asyncio.sleep(PICTURE_S / STEPS)
            on_step(Step(number=number, total=request.steps))
        return Drawn(png=b"", seed=request.seed, gpu_s=PICTURE_S)

    async def close(self) -> None:
        pass


class Silent:
    """Nobody watches."""

    def stepped(self, job: Job, picture: int, step: Step) -> None:
        pass


async def measure() -> Table:
    """Return the table of the waits, with the bound that the policy promises."""
    say(f"fairness: {FLOOD} jobs of one person, one each of {LIGHT_USERS}")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "images").mkdir()
        async with Store(Path(name) / "zbot.db") as store:
            queue = Queue(store, policy.Limits(per_person=FLOOD, in_all=FLOOD + LIGHT_USERS))
            generator = Generator(
                store=store, queue=queue, engine=TimedEngine(), model="timed", images_dir=Path(name) / "images",
                watcher=Silent(), rendered=lambda: None,
            )  # fmt: skip
            number = 0

            async def ask(user_id: int, num_images: int) -> None:
                nonlocal number
                number += 1
                request = ImageRequest(
                    prompt="a boat", seed=1, width=256, height=256, steps=STEPS, num_images=num_images
                )
                origin = Origin(
                    interaction_id=number, interaction_token=None, application_id=1, user_id=user_id, guild_id=1,
                    channel_id=1, locale="en-US", attachment_limit_bytes=1,
                )  # fmt: skip
                await queue.submit(request, origin)

            for _ in range(FLOOD):
                await ask(FLOODER, 4)
            began = time.monotonic()
            drawing = asyncio.create_task(generator.run())
            for user_id in range(FLOODER + 1, FLOODER + 1 + LIGHT_USERS):
                await asyncio.sleep(PICTURE_S * 3)
                await ask(user_id, 1)
            while await store.waiting():
                await asyncio.sleep(0.05)
            generator.stop()
            await drawing
            took_s = time.monotonic() - began
            rows = await store._all(
                "SELECT usage.user_id, wait_s, pictures FROM usage JOIN job ON job.id = job_id ORDER BY started_at"
            )
    largest_s = took_s / sum(row[2] for row in rows) * 4
    bound_s = (1 + LIGHT_USERS) * largest_s
    waits = {user_id: [row[1] for row in rows if row[0] == user_id] for user_id in {row[0] for row in rows}}
    table = [
        (f"light user {user_id - FLOODER}", 1, wait[0], wait[0] / largest_s, wait[0] / bound_s)
        for user_id, wait in sorted(waits.items())
        if user_id != FLOODER
    ]
    flood = waits[FLOODER]
    table.append(
        ("the flooder, median", FLOOD, percentile(flood, 50), percentile(flood, 50) / largest_s, None)
    )
    table.append(("the flooder, worst", FLOOD, max(flood), max(flood) / largest_s, None))
    return Table(
        title=f"One person with {FLOOD} jobs of 4 pictures, {LIGHT_USERS} people with one picture each",
        columns=("who", "jobs", "wait s", "in largest jobs", "of the bound"),
        rows=tuple(table),
        note=f"The bound is (active people) x (largest job) = {1 + LIGHT_USERS} x {largest_s:.3f} s; a light user's share of "
        f"it must stay below 1. A picture takes {PICTURE_S} s here; the real line, store and generator, no card.",
    )


def main() -> list[Table]:
    """Measure."""
    return [asyncio.run(measure())]
