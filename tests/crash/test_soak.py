"""Hundreds of jobs through random trouble of every kind, from a seed that is printed: all invariants at the end."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.crash.stage import Stage
from tests.crash.test_storm import FAULTS, ready
from tests.nursery import Forked
from zbot.sandbox import BotOffline, ClientRefusal, Handle, Person

JOBS, ALL_JOBS = 300, 10_000
WAITING = 24
ROUTES = ("callback", "original_edit", "channel_edit", "channel_send")


class Soak:
    """One stage, one source of chance, and the trouble it makes."""

    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self._stage = stage
        self._chance = chance
        self._victim: Forked
        self._handles: list[Handle] = []
        self._people: list[Person] = [stage.sandbox.person("Ada"), stage.sandbox.person("Bo")]
        self._people += [stage.sandbox.add_person(f"Guest {number}") for number in range(4)]
        self.happened: list[str] = []

    async def run(self, jobs: int) -> None:
        """Submit until so many were accepted, with something going wrong now and then; then let all settle."""
        troubles: list[Callable[[], Awaitable[None]]] = [
            self._kill, self._stop, self._fault, self._fault, self._fault, self._cancel, self._cancel,
            self._cut_gateway, self._replay, self._lose_message,
        ]  # fmt: skip
        self._victim = await ready(self._stage)
        while len(self._stage.rows()) < jobs:
            await self._submit()
            if self._chance.random() < 0.12:
                trouble = self._chance.choice(troubles)
                self.happened.append(trouble.__name__.strip("_"))
                await trouble()
        self._stage.sandbox.faults.clear()
        await self._alive()
        await self._stage.settle(self._victim, within_s=120)

    async def _submit(self) -> None:
        await self._alive()
        await self._stage.until(lambda: self._waiting() < WAITING, self._victim)
        count = self._chance.choice((1, 1, 1, 2, 3, 4))
        person = self._chance.choice(self._people)
        try:
            handle = await person.slash(
                "imagine",
                prompt=f"soaked {len(self._handles)}",
                seed=self._chance.randrange(2**32),
                count=count,
            )
        except BotOffline:
            return
        self._handles.append(handle)
        await asyncio.sleep(self._chance.choice((0, 0, 0, 0.01, 0.03)))

    def _waiting(self) -> int:
        rows = self._stage.query("SELECT count(*) AS count FROM job WHERE state = 'queued'")
        return rows[0]["count"] if rows else 0

    async def _alive(self) -> None:
        await self._stage.until(lambda: self._stage.sandbox.gateway.online, self._victim)

    async def _again(self) -> None:
        self._victim = await self._stage.started()

    async def _kill(self) -> None:
        await self._victim.end(signal.SIGKILL)
        await self._again()

    async def _stop(self) -> None:
        assert await self._victim.end(self._chance.choice((signal.SIGTERM, signal.SIGINT))) == 0
        await self._again()

    async def _fault(self) -> None:
        fault = dict(self._chance.choice(list(FAULTS.values())))
        self._stage.sandbox.faults.add(
            self._chance.choice(ROUTES),
            **fault,
            times=self._chance.randrange(1, 4),
            skip=self._chance.randrange(3),
        )

    async def _cancel(self) -> None:
        open_jobs = self._stage.query("SELECT id, user_id FROM job WHERE state IN ('queued', 'running')")
        if not open_jobs:
            return
        job = self._chance.choice(open_jobs)
        person = next(person for person in self._people if person.id == job["user_id"])
        with contextlib.suppress(ClientRefusal):
            await person.slash("cancel", job=str(job["id"]))

    async def _cut_gateway(self) -> None:
        self._chance.choice(
            (self._stage.sandbox.gateway.abort_all, self._stage.sandbox.gateway.send_reconnect)
        )()

    async def _replay(self) -> None:
        if self._handles:
            self._stage.sandbox.replay(self._chance.choice(self._handles[-20:]))

    async def _lose_message(self) -> None:
        """Delete the answer of a job that is not finished, as a moderator's clean-up does."""
        waiting = {
            row["message_id"]
            for row in self._stage.query("SELECT message_id FROM job WHERE state = 'queued'")
        }
        answers = [message for message in self._stage.bot_messages() if message.id in waiting]
        if answers:
            self._stage.sandbox.messages_store.delete(self._chance.choice(answers))


@pytest.mark.parametrize("number", [1])
async def test_random_trouble_breaks_no_invariant(stage: Stage, crash_all: bool, number: int):
    seed = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"CRASH_SEED={seed}")
    stage.sandbox.buckets.enabled = False  # its rate limits would make the run as slow as Discord is
    stage.settings |= {
        "CRASH_PACE_S": "0.001",
        "CRASH_FINISH_S": "1",
        "CRASH_ANSWER_S": "5",  # as it is: answers stall here while their bot is killed
        "ZBOT_MAX_WAITING_PER_PERSON": "50",
    }
    began = time.monotonic()
    soak = Soak(stage, random.Random(seed))
    await soak.run(ALL_JOBS if crash_all else JOBS)
    assert await stage.victims[-1].end() == 0, stage.tail()
    stage.check(may_trace=True)
    happened = {name: soak.happened.count(name) for name in sorted(set(soak.happened))}
    print(f"{len(stage.rows())} jobs in {time.monotonic() - began:.1f} s: {happened}")
