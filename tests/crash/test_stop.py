"""Stopping on purpose, a second bot, a wrong clock: nothing is lost, and no attempt is spent."""

import asyncio
import itertools
import os
import re
import signal
import sys
import time

import pytest

import bot
from tests.crash.conftest import OpenStage
from tests.crash.stage import Stage, recover
from tests.crash.test_storm import end, held, let_go, ready, until_running
from tests.nursery import ROOT
from zbot import generator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def stop(stage: Stage, number: int, *, twice: bool = False) -> float:
    """Stop the newest bot as an admin does; return how long it took."""
    began = time.monotonic()
    victim = stage.victims[-1]
    victim.kill(number)
    if twice:
        victim.kill(number)
    assert await victim.end(number) == 0, stage.tail()
    return time.monotonic() - began


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("twice", [False, True])
async def test_a_stop_while_idle_is_quick_and_clean(stage: Stage, number: int, twice: bool):
    await ready(stage)
    assert await stop(stage, number, twice=twice) < 5
    assert not (stage.data / "health.json").exists()
    stage.check()


async def test_a_stop_before_the_login_is_clean(stage: Stage):
    stage.sandbox.faults.add("me", stall_s=30)
    stage.start()
    await stage.until(lambda: stage.sandbox.requests.count("me"))
    assert await stop(stage, signal.SIGTERM) < 8


def test_the_patience_of_a_stop_adds_up_to_less_than_twenty_seconds():
    patience_s = (
        generator.FINISH_WITHIN_S + generator.PUT_BACK_WITHIN_S + bot.FLUSH_WITHIN_S + bot.CLOSE_WITHIN_S
    )
    assert patience_s <= 20


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_stop_while_drawing_puts_the_job_back_and_the_next_start_draws_it(stage: Stage, number: int):
    victim = await ready(stage, CRASH_FINISH_S="0.5")
    await held(stage)
    await stage.sandbox.person("Bo").slash("imagine", prompt="a boat", seed=2)
    await until_running(stage, victim)
    assert await stop(stage, number) < 5
    assert [(job["state"], job["attempts"]) for job in stage.rows()] == [("queued", 0)] * 2
    second = await recover(stage)
    await end(stage, second)
    assert all(job["state"] == "delivered" for job in stage.rows())


async def test_a_stop_lets_the_last_steps_and_their_delivery_end(stage: Stage):
    victim = await ready(stage)
    await held(stage)
    await until_running(stage, victim)
    victim.kill(signal.SIGTERM)
    await stage.until(lambda: "stopping" in stage.tail())
    let_go(stage)
    assert await victim.end() == 0
    assert [job["state"] for job in stage.rows()] == ["delivered"]
    stage.check()


async def test_a_stop_in_the_middle_of_an_upload_waits_for_it(stage: Stage):
    victim = await ready(stage)
    await held(stage)
    await until_running(stage, victim)
    fault = stage.sandbox.faults.add("original_edit", stall_s=1.0, before_processing=False)
    let_go(stage)
    await stage.until(lambda: fault.hits, victim)
    assert await stop(stage, signal.SIGTERM) < 20
    assert [job["state"] for job in stage.rows()] == ["delivered"]
    stage.check()


async def test_a_stop_does_not_wait_for_a_discord_that_stands_still(stage: Stage):
    victim = await ready(stage)
    await held(stage)
    await until_running(stage, victim)
    fault = stage.sandbox.faults.add("*", stall_s=60.0, times=1_000)
    let_go(stage)
    await stage.until(lambda: fault.hits, victim)
    assert await stop(stage, signal.SIGTERM) < 20
    fault.remove()
    assert [job["state"] for job in stage.rows()] == ["rendered"]
    await end(stage, await recover(stage))


async def test_a_second_bot_on_the_same_data_ends_at_once_and_harms_nothing(stage: Stage):
    first = await ready(stage)
    await held(stage)
    await until_running(stage, first)
    second = stage.start()
    async with asyncio.timeout(30):
        assert await second.ended == 2
    assert f"Another zbot uses {stage.data}" in stage.tail()
    let_go(stage)
    await end(stage, first)
    assert stage.sandbox.gateway.identifies == 1


async def _one_picture(stage: Stage, *, first_answer_lost: bool = False, **extra: str) -> None:
    if first_answer_lost:
        stage.sandbox.faults.add("callback", status=429, via=False, times=100)
    victim = await ready(stage, **extra)
    began = time.monotonic()
    await stage.sandbox.person("Ada").slash("imagine", prompt="a boat", seed=1)
    await stage.until(stage.rows, victim)
    await stage.settle(victim)
    assert time.monotonic() - began < 10
    await end(stage, victim)
    assert [job["state"] for job in stage.rows()] == ["delivered"]
    assert len(stage.bot_messages()) == 1


async def test_a_wall_clock_that_is_wrong_or_jumps_while_a_picture_is_drawn_expires_nothing(
    open_stage: OpenStage,
):
    async def one(how: str, by_s: float, lost: bool) -> None:
        async with open_stage(f"{how} {by_s} {lost}") as stage:
            setting = {"CRASH_CLOCK_S": str(by_s)} if how == "wrong" else {"CRASH_STEPS": f'{{"2": {by_s}}}'}
            await _one_picture(stage, first_answer_lost=lost, **setting)

    cases = itertools.product(("wrong", "jumps"), (-3600.0, -600.0, 600.0, 3600.0), (False, True))
    await asyncio.gather(*(one(*case) for case in cases))


async def test_a_restart_with_the_clock_set_back_or_forward_finishes_the_line(open_stage: OpenStage):
    async def one(jump_s: float) -> None:
        async with open_stage(f"restart {jump_s}") as stage:
            victim = await ready(stage)
            await held(stage)
            await until_running(stage, victim)
            await victim.end(signal.SIGKILL)
            await end(stage, await recover(stage, CRASH_CLOCK_S=str(jump_s)))
            assert {job["state"] for job in stage.rows()} == {"delivered"}

    await asyncio.gather(one(-600.0), one(600.0))


async def test_the_interpreter_that_really_runs_it_needs_no_nursery(stage: Stage):
    """Everything else forks from a process that has imported the bot; this one is started as people start it."""
    environment = {name: value for name, value in os.environ.items() if not re.match("ZBOT_|CRASH_", name)}
    environment |= {
        "DISCORD_TOKEN": stage.sandbox.token,
        "ZBOT_DATA_DIR": str(stage.data),
        "ZBOT_MODEL": "tiny",
        "ZBOT_DISCORD_API": stage.sandbox.api_url,
        "ZBOT_DISCORD_GATEWAY": stage.sandbox.gateway_url,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.crash.victim",
        cwd=ROOT,
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await stage.sandbox.synced("imagine", timeout_s=30)
    await stage.sandbox.ready(timeout_s=30)
    await stage.sandbox.person("Ada").slash("imagine", prompt="a boat", seed=1)
    await stage.until(lambda: stage.rows() and stage.open_jobs() == 0)
    process.terminate()
    assert await process.wait() == 0
    stage.check()
