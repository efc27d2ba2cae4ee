"""`kill -9` of the bot at every point of its work: nothing is lost, posted twice, billed twice or left behind."""

import asyncio
import random
import signal
from collections.abc import Iterable

from tests.crash.conftest import OpenStage
from tests.crash.stage import Died, Stage, recover, survive, tell_story

SIDE_BY_SIDE = 4
SEEDS = (1, 2, 3)
DOUBLE_KILLS, ALL_DOUBLE_KILLS = 12, 100


async def record(stage: Stage) -> list[str]:
    """Return every point that an undisturbed bot passes, in the order in which it passed them first."""
    points = stage.data.parent / f"{stage.data.name}.points"
    victim = await stage.started(CRASH_RECORD=str(points))
    await stage.sandbox.synced("imagine")
    await tell_story(stage)
    assert await victim.end() == 0
    stage.check()
    return list(dict.fromkeys(points.read_text().splitlines()))


async def live_and_die(stage: Stage, point: str) -> bool:
    """Kill a bot at a point of its story, start another one, and check; say whether the point was reached."""
    victim = stage.start(CRASH_AT=point)
    killed = await survive(stage, victim, _from_the_start(stage))
    if killed:
        assert await victim.ended == -signal.SIGKILL, stage.tail()
    else:
        await victim.end(signal.SIGKILL)
    second = await recover(stage)
    assert await second.end() == 0, stage.tail()
    stage.check()
    return killed


async def _from_the_start(stage: Stage) -> None:
    await stage.sandbox.ready(timeout_s=60)
    await stage.sandbox.synced("imagine", timeout_s=60)
    await tell_story(stage)


async def all_of(open_stage: OpenStage, points: Iterable[str], name: str = "") -> list[str]:
    """Live and die once for every point, several at a time; return the points that were not reached."""
    free = asyncio.Semaphore(SIDE_BY_SIDE)
    missed: list[str] = []
    failures: list[str] = []

    async def one(number: int, point: str) -> None:
        async with free, open_stage(f"{name}{number}") as stage:
            try:
                if not await live_and_die(stage, point):
                    missed.append(point)
            except (AssertionError, TimeoutError, Died) as error:
                failures.append(f"killed at {point}: {error!r}\n{error}")

    await asyncio.gather(*(one(number, point) for number, point in enumerate(points)))
    assert not failures, f"{len(failures)} points fail\n\n" + "\n\n".join(failures)
    return missed


async def test_kill_at_every_point(open_stage: OpenStage, crash_all: bool):
    async with open_stage("recorded") as stage:
        points = await record(stage)
    print(f"{len(points)} points")
    for seed in SEEDS if crash_all else SEEDS[:1]:
        random.Random(seed).shuffle(points)
        missed = await all_of(open_stage, points, f"{seed}-")
        print(f"not reached: {missed}")
        assert len(missed) <= len(points) / 10


async def test_a_second_kill_in_the_middle_of_the_recovery(open_stage: OpenStage, crash_all: bool):
    """Kill once in the story, then again while what that left is being put in order."""
    async with open_stage("recorded") as stage:
        points = await record(stage)
    async with open_stage("recovered") as stage:
        victim = stage.start(CRASH_AT="file.rename#1:after")
        assert await survive(stage, victim, _from_the_start(stage))
        record_file = stage.data.parent / "recovery.points"
        await (await recover(stage, CRASH_RECORD=str(record_file))).end()
        of_recovery = list(dict.fromkeys(record_file.read_text().splitlines()))
    chance = random.Random(7)
    failures: list[str] = []
    twice = 0
    free = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(number: int) -> None:
        nonlocal twice
        # What a recovery does first, every recovery does; what comes later depends on where the first kill was.
        first, second = chance.choice(points), chance.choice(of_recovery[: len(of_recovery) // 2])
        async with free, open_stage(f"double {number}") as stage:
            try:
                victim = stage.start(CRASH_AT=first)
                await survive(stage, victim, _from_the_start(stage))
                await victim.end(signal.SIGKILL)
                (stage.data / "release").touch()
                victim = stage.start(CRASH_AT=second)
                twice += await survive(stage, victim, _draw_one_more(stage))
                await victim.end(signal.SIGKILL)
                last = await recover(stage)
                assert await last.end() == 0, stage.tail()
                stage.check()
            except (AssertionError, TimeoutError, Died) as error:
                failures.append(f"killed at {first}, then at {second}: {error!r}\n{error}")

    amount = ALL_DOUBLE_KILLS if crash_all else DOUBLE_KILLS
    await asyncio.gather(*(one(number) for number in range(amount)))
    assert not failures, f"{len(failures)} of {amount} fail\n\n" + "\n\n".join(failures)
    assert twice >= amount / 4, "hardly any recovery was killed"


async def _draw_one_more(stage: Stage) -> None:
    known = stage.sandbox.gateway.identifies
    await stage.until(lambda: stage.sandbox.gateway.identifies > known and stage.sandbox.gateway.online)
    await stage.sandbox.synced("imagine")
    await stage.sandbox.person("Bo").slash("imagine", prompt="one more", seed=5)
    await stage.until(lambda: stage.rows() and stage.open_jobs() == 0)


async def test_files_of_a_job_that_is_taken_back_after_the_kill_are_removed(stage: Stage):
    victim = stage.start(CRASH_AT="file.rename#2:after")
    await _draw_three(stage)
    assert await victim.ended == -signal.SIGKILL
    assert len(list((stage.data / "images").glob("zbot-*.png"))) == 2
    victim = await stage.started(CRASH_PACE_S="5")
    await stage.sandbox.synced("imagine")
    await stage.sandbox.person("Ada").slash("cancel", job="1")
    await stage.settle(victim)
    assert [job["state"] for job in stage.rows()] == ["cancelled"]
    assert await victim.end() == 0
    stage.check()


async def _draw_three(stage: Stage) -> None:
    await stage.sandbox.ready(timeout_s=60)
    await stage.sandbox.synced("imagine", timeout_s=60)
    await stage.sandbox.person("Ada").slash("imagine", prompt="three boats", seed=3, count=3)
