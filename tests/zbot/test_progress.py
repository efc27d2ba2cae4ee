import asyncio
import itertools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import Clock, FakeMessenger, a_job, accept, an_origin, eventually, running, spin
from zbot import progress as module
from zbot.engine import Step
from zbot.errors import StoreUnavailable
from zbot.job import Job
from zbot.policy import Limits
from zbot.progress import Drawing, Herald
from zbot.queue import Line, Place, Queue
from zbot.store import Store

FIRST = Place(place=1, eta_s=None)


class Bench:
    """A herald on a real line, with people that are a fake."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.queue = Queue(store, Limits())
        self.messenger = FakeMessenger()
        self.herald = Herald(self.queue, self.messenger)
        self.queue.connect(stop_drawing=lambda job_id: None, line_changed=self.herald.line_changed)

    async def job(self, user_id: int = 1, **fields: Any) -> Job:
        """Return a waiting job whose first answer stands in the channel."""
        accepted = (await accept(self.store, origin=an_origin(user_id, **fields))).job
        await self.store.set_message(accepted.id, 500 + accepted.id)
        return await self.store.job(accepted.id)

    def step(self, job: Job, number: int, picture: int = 1) -> Drawing:
        step = Step(number=number, total=8)
        self.herald.stepped(job, picture, step)
        return Drawing(picture=picture, step=step)

    async def settle(self) -> None:
        """Let the herald do whatever it would do by now."""
        for _ in range(3):
            await self.store.waiting()
            await spin()

    def shown(self, job: Job) -> list[Place | Drawing]:
        return [status for job_id, status in self.messenger.updates if job_id == job.id]


@pytest.fixture
async def bench(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    bench = Bench(store, clock)
    async with running(bench.herald.run()):
        yield bench
        bench.messenger.let_go()


# --- what is shown ---


async def test_a_job_that_is_drawn_at_once_shows_no_steps(bench: Bench):
    job = await bench.job()
    bench.step(job, 8)
    await bench.settle()
    await bench.herald.close(job.id)
    await bench.clock.advance(module.FIRST_STEP_AFTER_S)
    await bench.settle()
    assert bench.shown(job) == []


async def test_steps_are_shown_soon_and_then_the_newest_of_every_second(bench: Bench):
    job = await bench.job()
    first = bench.step(job, 1)
    await bench.settle()
    assert bench.shown(job) == []
    await bench.clock.advance(module.FIRST_STEP_AFTER_S)
    await eventually(lambda: bench.shown(job) == [first])
    for number in range(2, 7):
        newest = bench.step(job, number)
    await bench.settle()
    assert bench.shown(job) == [first], "a second edit within the second"
    await bench.clock.advance(module.STEP_PAUSE_S)
    await eventually(lambda: bench.shown(job) == [first, newest])
    await bench.clock.advance(100)
    await bench.settle()
    assert bench.shown(job) == [first, newest], "nothing new was sent again"


async def test_a_place_that_changed_is_shown_and_one_that_did_not_is_not(bench: Bench):
    first, second = await bench.job(1), await bench.job(2)
    bench.herald.answered(first, FIRST)
    bench.herald.answered(second, Place(place=2, eta_s=None))
    bench.queue.ring()
    await bench.settle()
    await bench.clock.advance(module.PLACE_PAUSE_S)
    await bench.settle()
    assert bench.messenger.updates == [], "both were shown already"
    await bench.queue.cancel(first.id, user_id=1, is_moderator=False)
    await bench.herald.close(first.id)
    await eventually(lambda: bench.shown(second) == [FIRST])
    assert bench.shown(first) == []


async def test_places_of_one_job_are_shown_some_seconds_apart(bench: Bench):
    jobs = [await bench.job(user_id) for user_id in (1, 2, 3)]
    last = jobs[-1]
    bench.herald.answered(last, Place(place=3, eta_s=None))
    await bench.queue.claim()
    await bench.settle()
    await bench.clock.advance(module.PLACE_PAUSE_S - 0.5)
    await bench.settle()
    assert bench.shown(last) == []
    await bench.queue.claim()  # another change before the first was shown
    await bench.settle()
    await bench.clock.advance(0.5)
    await eventually(lambda: bench.shown(last) == [FIRST])


async def test_after_a_restart_the_answers_of_waiting_jobs_become_current(bench: Bench):
    job = await bench.job()
    bench.queue.ring()
    await eventually(lambda: bench.shown(job) == [FIRST])


async def test_a_job_without_a_message_has_nothing_to_edit(bench: Bench):
    job = await a_job(bench.store)
    bench.step(job, 1)
    bench.queue.ring()
    await bench.settle()
    await bench.clock.advance(100)
    await bench.settle()
    assert bench.messenger.calls == []


async def test_an_eta_that_counts_down_by_itself_is_left_alone_and_a_wrong_one_is_mended(bench: Bench):
    job = await bench.job()
    cost = job.request.cost
    bench.queue.speed.learn([100.0 / cost])
    bench.herald.answered(job, Place(place=1, eta_s=100.0))
    for eta_s, edits in ((110.0, 0), (95.0, 0), (300.0, 1)):
        bench.queue.speed._samples.clear()
        bench.queue.speed.learn([eta_s / cost])
        bench.queue.ring()
        await bench.settle()
        await bench.clock.advance(module.PLACE_PAUSE_S)
        await bench.settle()
        assert len(bench.shown(job)) == edits, eta_s


async def test_a_first_eta_is_news(bench: Bench):
    job = await bench.job()
    bench.herald.answered(job, FIRST)
    bench.queue.speed.learn([1.0])
    bench.queue.ring()
    await bench.settle()
    await bench.clock.advance(module.PLACE_PAUSE_S)
    await eventually(lambda: bench.shown(job))
    (shown,) = bench.shown(job)
    assert isinstance(shown, Place) and shown.eta_s


# --- within the budget ---


async def test_a_guild_gets_so_many_edits_in_a_minute_and_another_one_its_own(bench: Bench):
    jobs = [await bench.job(user_id) for user_id in range(module.EDITS + 2)]
    for job in jobs:
        bench.step(job, 1)
    await eventually(lambda: len(bench.messenger.updates) == module.EDITS)
    await bench.settle()
    assert len(bench.messenger.updates) == module.EDITS
    elsewhere = await bench.job(99, guild_id=8)
    bench.step(elsewhere, 1)
    await eventually(lambda: bench.shown(elsewhere))
    await bench.clock.advance(module.EDITS_WITHIN_S - 1)
    await bench.settle()
    assert len(bench.messenger.updates) == module.EDITS + 1
    await bench.clock.advance(1)
    await eventually(lambda: len(bench.messenger.updates) == module.EDITS + 3)


async def test_steps_of_a_long_drawing_come_the_more_slowly_the_more_were_shown(bench: Bench):
    job = await bench.job()
    shown_at: list[int] = []
    for second in range(1, 61):
        bench.step(job, second)
        await bench.clock.advance(1)
        await bench.settle()
        if len(bench.shown(job)) > len(shown_at):
            shown_at.append(second)
    pauses = [later - sooner for sooner, later in itertools.pairwise(shown_at)]
    assert pauses == sorted(pauses) and pauses[0] == 1
    assert module.STEADY_EDITS < len(shown_at) <= module.EDITS - module.EDITS_KEPT


async def test_the_beginning_of_a_drawing_is_shown_also_when_others_have_been_edited_often(bench: Bench):
    waiting = [await bench.job(user_id) for user_id in range(module.EDITS)]
    for job in waiting:
        bench.herald.answered(job, Place(place=30, eta_s=None))
    await bench.clock.advance(module.PLACE_PAUSE_S)
    bench.queue.ring()
    await eventually(lambda: len(bench.messenger.updates) == module.EDITS - module.EDITS_KEPT)
    await bench.settle()
    assert len(bench.messenger.updates) == module.EDITS - module.EDITS_KEPT, "places left room for beginnings"
    begun = bench.step(waiting[-1], 1)
    await bench.clock.advance(module.FIRST_STEP_AFTER_S)
    await eventually(lambda: bench.shown(waiting[-1])[-1:] == [begun])


async def test_what_runs_goes_before_what_waits_and_of_those_the_next_first(bench: Bench):
    runs, *waiting = [await bench.job(user_id) for user_id in range(4)]
    elsewhere = await bench.job(99, guild_id=8)
    for job in reversed(waiting):
        bench.herald.answered(job, Place(place=9, eta_s=None))
    await bench.clock.advance(module.PLACE_PAUSE_S)
    bench.messenger.hold()
    bench.step(elsewhere, 1)  # the one edit under way, while the others gather
    await eventually(lambda: bench.messenger.under_way)
    await bench.queue.claim()
    bench.step(runs, 1)
    await bench.clock.advance(module.FIRST_STEP_AFTER_S)
    bench.messenger.let_go()
    await eventually(lambda: len(bench.messenger.updates) >= 5)
    shown = [job_id for job_id, _ in bench.messenger.updates if job_id != elsewhere.id]
    assert shown == [runs.id, *(job.id for job in waiting)]


# --- never after the outcome ---


async def test_close_waits_for_an_edit_under_way(bench: Bench):
    job = await bench.job()
    bench.messenger.hold()
    bench.step(job, 1)
    await eventually(lambda: bench.messenger.under_way)
    closing = asyncio.ensure_future(bench.herald.close(job.id))
    await bench.settle()
    assert not closing.done()
    bench.messenger.let_go()
    await asyncio.wait_for(closing, 10)
    assert bench.messenger.under_way == 0


async def test_close_does_not_wait_for_an_edit_of_another_job(bench: Bench):
    job, other = await bench.job(1), await bench.job(2)
    bench.messenger.hold()
    bench.step(job, 1)
    await eventually(lambda: bench.messenger.under_way)
    await asyncio.wait_for(bench.herald.close(other.id), 10)
    assert bench.messenger.under_way == 1


async def test_close_waits_no_longer_than_an_edit_may_take(bench: Bench):
    job = await bench.job()
    bench.messenger.hold()
    bench.step(job, 1)
    await eventually(lambda: bench.messenger.under_way)
    closing = asyncio.ensure_future(bench.herald.close(job.id))
    await bench.clock.advance(module.EDIT_WITHIN_S)
    await asyncio.wait_for(closing, 10)


async def test_a_late_word_about_a_closed_job_is_not_shown(bench: Bench):
    job = await bench.job()
    bench.step(job, 1)
    await bench.herald.close(job.id)
    bench.step(job, 2)
    bench.herald.answered(job, FIRST)
    bench.queue.ring()
    await bench.settle()
    await bench.clock.advance(100)
    await bench.settle()
    assert bench.messenger.calls == []


async def test_a_line_read_before_a_job_was_closed_brings_it_not_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    job, read, was_read, may_answer = await bench.job(), bench.queue.line, asyncio.Event(), asyncio.Event()

    async def slow() -> Line:
        line = await read()
        was_read.set()
        await may_answer.wait()
        return line

    monkeypatch.setattr(bench.queue, "line", slow)
    bench.queue.ring()
    await was_read.wait()
    await bench.store.cancel(job.id)
    await bench.herald.close(job.id)
    may_answer.set()
    await bench.settle()
    await bench.clock.advance(100)
    await bench.settle()
    assert bench.messenger.calls == []


# --- failing is harmless ---


async def test_an_edit_that_fails_or_hangs_holds_up_nothing(bench: Bench):
    job, other = await bench.job(1), await bench.job(2)
    bench.messenger.errors.append(OSError("connection reset"))
    bench.step(job, 1)
    await eventually(lambda: bench.messenger.calls)
    bench.messenger.hold()
    bench.step(job, 2)
    await bench.clock.advance(module.STEP_PAUSE_S)
    await eventually(lambda: bench.messenger.under_way)
    bench.step(other, 1)
    await bench.clock.advance(module.EDIT_WITHIN_S)
    bench.messenger.let_go()
    await eventually(lambda: bench.shown(other))


async def test_a_line_that_cannot_be_read_stops_no_progress(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    job, failed = await bench.job(), asyncio.Event()

    async def locked() -> Line:
        failed.set()
        raise StoreUnavailable("database is locked")

    monkeypatch.setattr(bench.queue, "line", locked)
    bench.queue.ring()
    await failed.wait()
    step = bench.step(job, 1)
    await eventually(lambda: bench.shown(job) == [step])


async def test_only_the_last_closed_jobs_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CLOSED_KEPT", 3)
    jobs = [await bench.job(user_id) for user_id in range(5)]
    for job in jobs:
        await bench.herald.close(job.id)
    assert list(bench.herald._closed) == [job.id for job in jobs[2:]]
