import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Clock, FakeMessenger, a_job, eventually, running, spin
from zbot import outbox as module
from zbot.errors import StoreUnavailable, Undeliverable
from zbot.job import Job, JobId, JobState
from zbot.outbox import Outbox
from zbot.store import Store

ENDINGS = [JobState.RENDERED, JobState.FAILED, JobState.CANCELLED]


class Bench:
    """An outbox on a real database, with people that are a fake."""

    def __init__(self, store: Store, images_dir: Path) -> None:
        self.store = store
        self.images_dir = images_dir
        self.messenger = FakeMessenger()
        self.closed: list[JobId] = []
        self.outbox = Outbox(
            store=store, messenger=self.messenger, images_dir=images_dir, before_outcome=self._close
        )

    async def _close(self, job_id: JobId) -> None:
        self.closed.append(job_id)

    async def job(self, state: JobState = JobState.RENDERED, **fields: Any) -> Job:
        """Return a job whose first answer is known, so that its outcome is told at once."""
        job = await a_job(self.store, state, **fields)
        await self.store.set_message(job.id, 500 + job.id)
        return job

    async def state(self, job: Job) -> JobState:
        return (await self.store.job(job.id)).state

    async def empty(self) -> None:
        async def is_empty() -> bool:
            return not await self.store.outbox()

        await eventually(is_empty)

    async def rounds(self, count: int = 5) -> None:
        """Ring and let the outbox look, so many times: whatever it would do by now is done."""
        for _ in range(count):
            self.outbox.ring()
            await self.store.outbox()
            await spin()


@pytest.fixture
async def bench(store: Store, data_dir: Path) -> Bench:
    return Bench(store, data_dir / "images")


@pytest.fixture
async def at_work(bench: Bench) -> AsyncIterator[Bench]:
    async with running(bench.outbox.run()):
        yield bench


async def test_pictures_are_delivered_and_the_job_knows_their_message(at_work: Bench):
    job = await at_work.job()
    at_work.outbox.ring()
    await at_work.empty()
    assert at_work.messenger.delivered == {job.id: [at_work.images_dir / name for name in job.file_names]}
    done = await at_work.store.job(job.id)
    assert (done.state, done.message_id) == (JobState.DELIVERED, 10_000 + job.id)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
async def test_failures_and_cancellations_are_told(at_work: Bench, state: JobState):
    job = await at_work.job(state)
    at_work.outbox.ring()
    await at_work.empty()
    assert at_work.messenger.told == [job.id] and at_work.messenger.delivered == {}
    assert await at_work.state(job) is state


@pytest.mark.parametrize("state", ENDINGS)
async def test_an_outcome_is_told_once_however_often_the_bell_rings(at_work: Bench, state: JobState):
    job = await at_work.job(state)
    at_work.messenger.hold()
    await at_work.rounds()
    at_work.messenger.let_go()
    await at_work.empty()
    await at_work.rounds()
    assert [job_id for _, job_id in at_work.messenger.calls] == [job.id]


async def test_what_was_left_at_the_last_end_is_told_at_the_start(bench: Bench):
    jobs = [await bench.job(state) for state in ENDINGS]
    async with running(bench.outbox.run()):
        await bench.empty()
    assert sorted(job_id for _, job_id in bench.messenger.calls) == [job.id for job in jobs]


async def test_progress_is_closed_before_the_outcome_is_shown(bench: Bench):
    seen: list[str] = []

    async def close(job_id: JobId) -> None:
        seen.append("closed")

    async def deliver(job: Job, pictures: object) -> int:
        seen.append("delivered")
        return 1

    bench.messenger.deliver = deliver  # type: ignore[method-assign]
    bench.outbox._before_outcome = close
    await bench.job()
    async with running(bench.outbox.run()):
        await bench.empty()
    assert seen == ["closed", "delivered"]


async def test_a_slow_upload_holds_up_nobody_else_and_only_so_many_go_at_once(at_work: Bench):
    at_work.messenger.hold()
    jobs = [await at_work.job() for _ in range(module.AT_ONCE + 3)]
    at_work.outbox.ring()
    await eventually(lambda: at_work.messenger.under_way == module.AT_ONCE)
    await at_work.rounds()
    assert at_work.messenger.under_way == module.AT_ONCE
    at_work.messenger.let_go()
    await at_work.empty()
    assert at_work.messenger.most_under_way == module.AT_ONCE
    assert sorted(at_work.messenger.delivered) == [job.id for job in jobs]


async def test_an_outcome_read_just_before_it_was_told_is_not_told_again(
    at_work: Bench, monkeypatch: pytest.MonkeyPatch
):
    """The reader sees the job before the commit, and its answer arrives after it."""
    at_work.messenger.hold()
    job = await at_work.job()
    at_work.outbox.ring()
    await eventually(lambda: at_work.messenger.under_way)
    read, stale_read = at_work.store.outbox, asyncio.Event()

    async def late() -> list[Job]:
        jobs = await read()
        if not stale_read.is_set():
            stale_read.set()
            at_work.messenger.let_go()
            await eventually(lambda: not at_work.outbox._under_way)
        return jobs

    monkeypatch.setattr(at_work.store, "outbox", late)
    at_work.outbox.ring()
    await stale_read.wait()
    await at_work.empty()
    await at_work.rounds()
    assert [job_id for _, job_id in at_work.messenger.calls] == [job.id]


# --- the first answer ---


async def test_an_outcome_waits_for_the_jobs_first_answer(at_work: Bench):
    job = await at_work.job()
    with at_work.outbox.first_answer(job.id):
        await at_work.rounds()
        assert at_work.messenger.calls == []
    await at_work.empty()
    assert at_work.messenger.calls == [("deliver", job.id)]


async def test_of_two_answers_to_one_interaction_the_later_counts(at_work: Bench):
    job = await at_work.job()
    with at_work.outbox.first_answer(job.id):
        with at_work.outbox.first_answer(job.id):
            pass
        await at_work.rounds()
        assert at_work.messenger.calls == []
    await at_work.empty()


async def test_a_first_answer_that_fails_holds_nothing_back(at_work: Bench):
    job = await at_work.job()
    with pytest.raises(OSError), at_work.outbox.first_answer(job.id):
        await at_work.rounds()
        raise OSError("connection reset")
    await at_work.empty()


async def test_an_answer_that_ends_while_the_table_is_read_is_not_missed(
    at_work: Bench, monkeypatch: pytest.MonkeyPatch
):
    job, read, reading, go_on = await at_work.job(), at_work.store.outbox, asyncio.Event(), asyncio.Event()

    async def slow() -> list[Job]:
        jobs = await read()
        reading.set()
        await go_on.wait()
        return jobs

    with at_work.outbox.first_answer(job.id):
        monkeypatch.setattr(at_work.store, "outbox", slow)
        at_work.outbox.ring()
        await reading.wait()
    go_on.set()
    await at_work.empty()
    assert at_work.messenger.calls == [("deliver", job.id)]


# --- when it does not work ---


async def fails(bench: Bench, times: int, clock: Clock, pauses_s: list[float]) -> None:
    """Go through the pauses one by one: nothing happens before their end, and one try at it."""
    for number, pause_s in enumerate(pauses_s[:times], start=1):
        await eventually(
            lambda number=number: len(bench.messenger.calls) == number and not bench.outbox._under_way
        )
        await clock.advance(pause_s - 0.25)
        await bench.rounds(2)
        assert len(bench.messenger.calls) == number, "it was tried too early"
        await clock.advance(0.25)


async def test_tries_are_repeated_with_growing_pauses_until_it_works(at_work: Bench, clock: Clock):
    at_work.messenger.errors.extend([OSError("connection reset")] * 8)
    job = await at_work.job()
    at_work.outbox.ring()
    await fails(at_work, 8, clock, [1, 2, 4, 8, 16, 32, 60, 60])
    await at_work.empty()
    assert await at_work.state(job) is JobState.DELIVERED
    assert len(at_work.messenger.calls) == 9


async def test_a_failing_outcome_holds_up_no_other(at_work: Bench):
    at_work.messenger.errors.append(OSError("connection reset"))
    first = await at_work.job()
    at_work.outbox.ring()
    await eventually(lambda: at_work.messenger.calls)
    second = await at_work.job()
    at_work.outbox.ring()
    await eventually(lambda: at_work.messenger.delivered)
    assert list(at_work.messenger.delivered) == [second.id]
    assert await at_work.state(first) is JobState.RENDERED


async def test_the_thousandth_try_has_a_pause_too(at_work: Bench):
    job = await at_work.job()
    at_work.outbox._tries[job.id] = 2_000
    at_work.messenger.errors.append(OSError("connection reset"))
    at_work.outbox.ring()
    await eventually(lambda: at_work.messenger.calls)
    await at_work.rounds()
    assert len(at_work.messenger.calls) == 1


async def test_pictures_for_a_channel_that_is_gone_are_given_up_at_once(at_work: Bench):
    at_work.messenger.errors.append(Undeliverable("the channel is gone"))
    job = await at_work.job()
    at_work.outbox.ring()
    await at_work.empty()
    assert await at_work.state(job) is JobState.UNDELIVERABLE
    assert (await at_work.store.usage(1, None)).pictures == 1, "it was drawn, so it is billed"


async def test_a_failure_that_cannot_be_shown_is_let_be(at_work: Bench):
    at_work.messenger.errors.append(Undeliverable("the channel is gone"))
    job = await at_work.job(JobState.FAILED)
    at_work.outbox.ring()
    await at_work.empty()
    assert await at_work.state(job) is JobState.FAILED


@pytest.mark.parametrize("state", ENDINGS)
async def test_after_a_day_it_is_given_up(at_work: Bench, monkeypatch: pytest.MonkeyPatch, state: JobState):
    monkeypatch.setattr(module, "GIVE_UP_AFTER_S", 0.0)
    at_work.messenger.error = OSError("connection reset")
    job = await at_work.job(state)
    at_work.outbox.ring()
    await at_work.empty()
    assert len(at_work.messenger.calls) == 1
    assert await at_work.state(job) is (JobState.UNDELIVERABLE if state is JobState.RENDERED else state)


async def test_what_was_shown_but_could_not_be_noted_is_shown_again_after_a_pause(
    at_work: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    note = at_work.store.delivered
    monkeypatch.setattr(at_work.store, "delivered", unavailable)  # before the outbox can see the job
    job = await at_work.job()
    at_work.outbox.ring()
    await eventually(lambda: at_work.outbox._tries)
    monkeypatch.setattr(at_work.store, "delivered", note)
    await at_work.rounds()
    assert len(at_work.messenger.calls) == 1
    await clock.advance(1)
    await at_work.empty()
    assert await at_work.state(job) is JobState.DELIVERED


async def unavailable(*_: object, **__: object) -> None:
    raise StoreUnavailable("database is locked")


@pytest.mark.parametrize("name", ["undeliverable", "told"])
async def test_giving_up_that_cannot_be_noted_does_not_hammer_discord(
    at_work: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch, name: str
):
    note: Callable[..., Awaitable[None]] = getattr(at_work.store, name)
    at_work.messenger.error = Undeliverable("the channel is gone")
    monkeypatch.setattr(at_work.store, name, unavailable)
    await at_work.job(JobState.FAILED if name == "told" else JobState.RENDERED)
    at_work.outbox.ring()
    await eventually(lambda: at_work.messenger.calls)
    await at_work.rounds()
    assert len(at_work.messenger.calls) == 1
    monkeypatch.setattr(at_work.store, name, note)
    await clock.advance(1)
    await at_work.empty()


async def test_an_outbox_that_cannot_be_read_is_read_again(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    await bench.job()
    read, failed = bench.store.outbox, asyncio.Event()

    async def once() -> list[Job]:
        monkeypatch.setattr(bench.store, "outbox", read)
        failed.set()
        raise StoreUnavailable("database is locked")

    monkeypatch.setattr(bench.store, "outbox", once)
    async with running(bench.outbox.run()):
        await failed.wait()
        await clock.advance(5)
        await bench.empty()


# --- the end ---


async def test_flush_waits_for_what_is_under_way(at_work: Bench):
    at_work.messenger.hold()
    job = await at_work.job()
    at_work.outbox.ring()
    await eventually(lambda: at_work.messenger.under_way)
    flushing = asyncio.ensure_future(at_work.outbox.flush(10))
    await at_work.rounds()
    assert not flushing.done()
    at_work.messenger.let_go()
    await asyncio.wait_for(flushing, 10)
    assert await at_work.state(job) is JobState.DELIVERED


async def test_flush_waits_no_longer_than_it_may(at_work: Bench, clock: Clock):
    at_work.messenger.hold()
    await at_work.job()
    flushing = asyncio.ensure_future(at_work.outbox.flush(5))
    await at_work.rounds()
    await clock.advance(5)
    await asyncio.wait_for(flushing, 10)


async def test_flush_does_not_wait_for_what_has_failed_before(at_work: Bench):
    at_work.messenger.errors.append(OSError("connection reset"))
    await at_work.job()
    at_work.outbox.ring()
    await eventually(lambda: at_work.outbox._tries)
    await asyncio.wait_for(at_work.outbox.flush(60), 10)


async def test_the_end_stops_what_is_under_way_and_the_next_start_tells_it(bench: Bench):
    bench.messenger.hold()
    job = await bench.job()
    async with running(bench.outbox.run()):
        await eventually(lambda: bench.messenger.under_way)
    await eventually(lambda: not bench.messenger.under_way)
    assert [left.id for left in await bench.store.outbox()] == [job.id]
