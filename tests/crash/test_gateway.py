"""Trouble on the gateway: the bot comes back, and one interaction makes one job however often it is heard."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.crash.conftest import OpenStage
from tests.crash.stage import Stage
from tests.crash.test_storm import end, held, let_go, ready, until_running
from tests.nursery import Forked
from zbot.sandbox.gateway import Gateway

MAX_IDENTIFIES = 5


async def picture(stage: Stage, victim: Forked) -> None:
    """See that the bot hears and draws."""
    known = len(stage.rows())
    await stage.sandbox.person("Ada").slash("imagine", prompt="a boat", seed=1)
    await stage.until(lambda: len(stage.rows()) > known and stage.open_jobs() == 0, victim)


async def _op_7(gateway: Gateway) -> None:
    gateway.send_reconnect()


async def _op_9_resumable(gateway: Gateway) -> None:
    gateway.invalidate(True)


async def _op_9(gateway: Gateway) -> None:
    gateway.invalidate(False)


async def _cut(gateway: Gateway) -> None:
    gateway.abort_all()


def _close(code: int) -> Callable[[Gateway], Awaitable[None]]:
    async def close(gateway: Gateway) -> None:
        await gateway.close_all(code)

    return close


Disturb = Callable[[Gateway], Awaitable[None]]
DISTURBANCES: dict[str, Disturb] = {
    **{f"close {code}": _close(code) for code in (1000, 1001, 4000, 4007, 4009)},
    "op 7": _op_7,
    "op 9, resumable": _op_9_resumable,
    "op 9": _op_9,
    "cut": _cut,
}


async def test_the_bot_comes_back_and_the_job_in_hand_does_not_notice(open_stage: OpenStage):
    async def one(name: str, disturb: Disturb) -> None:
        async with open_stage(name) as stage:
            victim = await ready(stage)
            await held(stage)
            await until_running(stage, victim)
            gateway = stage.sandbox.gateway
            heard = gateway.identifies + gateway.resumes
            await disturb(gateway)
            let_go(stage)
            await stage.settle(victim)
            await stage.until(lambda: gateway.online and gateway.identifies + gateway.resumes > heard, victim)
            await picture(stage, victim)
            assert gateway.identifies <= MAX_IDENTIFIES
            await end(stage, victim, may_trace=True)

    await asyncio.gather(*(one(name, disturb) for name, disturb in DISTURBANCES.items()))


@pytest.mark.parametrize("code", [4004, 4014])
async def test_a_close_for_good_ends_the_bot_with_one_sentence_and_loses_nothing(stage: Stage, code: int):
    victim = await ready(stage, CRASH_FINISH_S="0.2")
    await held(stage)
    await until_running(stage, victim)
    await stage.sandbox.gateway.close_all(code)
    async with asyncio.timeout(30):
        assert await victim.ended == 2, stage.tail()
    last = stage.tail().splitlines()[-1]
    assert ("DISCORD_TOKEN" in last) if code == 4004 else (str(code) in last)
    assert stage.rows()[0]["state"] == "queued"
    let_go(stage)
    await end(stage, await ready(stage))


async def test_the_same_interaction_heard_three_times_makes_one_job_and_one_message(stage: Stage):
    victim = await ready(stage)
    handle = await stage.sandbox.person("Ada").slash("imagine", prompt="a boat", seed=1)
    stage.sandbox.replay(handle)
    stage.sandbox.replay(handle)
    await stage.until(stage.rows, victim)
    await stage.settle(victim)
    stage.sandbox.replay(handle)  # and once more when all is over
    answers = stage.sandbox.requests.count("callback")
    await stage.until(lambda: stage.sandbox.requests.count("callback") > answers or answers >= 4, victim)
    await picture(stage, victim)
    assert len(stage.rows()) == 2
    await end(stage, victim)
    assert len(stage.bot_messages()) == 2


async def test_ready_heard_twice_changes_nothing(stage: Stage):
    victim = await ready(stage)
    stage.sandbox.gateway.send_ready_again()
    await picture(stage, victim)
    assert stage.sandbox.requests.count("commands_put") == 1
    await end(stage, victim)


async def test_what_was_drawn_in_an_hour_of_darkness_is_posted_meanwhile(stage: Stage):
    victim = await ready(stage)
    await held(stage)
    await until_running(stage, victim)
    await stage.sandbox.gateway.go_dark()
    stage.sandbox.clock.advance(3600)
    let_go(stage)
    await stage.settle(victim)
    assert stage.rows()[0]["state"] == "delivered"
    stage.sandbox.gateway.dark = False
    await stage.until(lambda: stage.sandbox.gateway.online, victim)
    await picture(stage, victim)
    await end(stage, victim, may_trace=True)


async def test_heartbeats_that_nobody_answers_make_the_bot_connect_anew(stage: Stage, crash_all: bool):
    if not crash_all:
        pytest.skip("discord.py waits a minute for them: with --crash-all")
    stage.sandbox.gateway.heartbeat_interval_s = 0.3
    victim = await ready(stage)
    gateway = stage.sandbox.gateway
    gateway.acknowledges_heartbeats = False
    heard = gateway.identifies + gateway.resumes
    await stage.until(lambda: gateway.identifies + gateway.resumes > heard, victim)
    gateway.acknowledges_heartbeats = True
    gateway.heartbeat_interval_s = 41.25
    await stage.until(lambda: gateway.online, victim)
    await picture(stage, victim)
    await end(stage, victim)
