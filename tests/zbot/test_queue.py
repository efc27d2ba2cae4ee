import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator

import pytest

from tests.fakes import MODEL, Clock, a_job, a_request, an_origin, eventually, running
from zbot import queue as module
from zbot.errors import JobNotFound, NotAllowed, QueueFull, QuotaExceeded, StoreUnavailable
from zbot.job import JobId, JobState
from zbot.policy import Limits
from zbot.queue import ACCEPT_WITHIN_S, Queue, Speed, require_owner
from zbot.store import Store

COST = a_request().cost


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store, Limits(per_person=3, in_all=5))


class Heard:
    """What the queue told those it is connected to."""

    def __init__(self, queue: Queue) -> None:
        self.stopped: list[JobId] = []
        self.changes = 0
        queue.connect(stop_drawing=self.stopped.append, line_changed=self._changed)

    def _changed(self) -> None:
        self.changes += 1


class Writer:
    """Holds the database's writing thread, at its next COMMIT or at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reached = threading.Event()
        self._gate = threading.Event()

    async def stop_at_commit(self) -> None:
        def trace(sql: str) -> None:
            if sql == "COMMIT" and not self._gate.is_set():
                self._reached.set()
                self._gate.wait(10)

        await self._store._writer._connection.run(lambda connection: connection.set_trace_callback(trace))

    def stop_now(self) -> asyncio.Future[object]:
        def wait(connection: sqlite3.Connection) -> None:
            self._reached.set()
            self._gate.wait(10)

        return asyncio.ensure_future(self._store._writer._connection.run(wait))

    async def stands(self) -> None:
        await asyncio.to_thread(self._reached.wait, 10)

    def go_on(self) -> None:
        self._gate.set()


@pytest.fixture
async def writer(store: Store) -> AsyncIterator[Writer]:
    writer = Writer(store)
    yield writer
    writer.go_on()


# --- submitting ---


async def test_when_submit_returns_the_row_is_committed(store: Store, queue: Queue):
    accepted, place = await queue.submit(a_request(), an_origin())
    assert (place.place, place.eta_s) == (1, None)
    async with Store(store._path) as another:
        assert (await another.job(accepted.job.id)).request == a_request()


async def test_what_is_refused_leaves_nothing(store: Store, queue: Queue):
    for _ in range(3):
        await queue.submit(a_request(), an_origin(1))
    with pytest.raises(QuotaExceeded):
        await queue.submit(a_request(), an_origin(1))
    for user_id in (2, 3):
        await queue.submit(a_request(), an_origin(user_id))
    with pytest.raises(QueueFull):
        await queue.submit(a_request(), an_origin(4))
    assert len(await store.waiting()) == 5


async def test_a_place_and_its_time_count_what_is_before_and_what_is_left_on_the_card(
    store: Store, queue: Queue
):
    queue.speed.learn([2.0 / COST])  # two seconds a job
    await queue.submit(a_request(), an_origin(1))
    job = await queue.claim()
    queue.drawn_so_far(job, 0.75)
    await queue.submit(a_request(), an_origin(2))
    _, place = await queue.submit(a_request(num_images=2), an_origin(3))
    assert place.place == 2
    assert place.eta_s == pytest.approx(0.5 + 2 + 4)
    line = await queue.line()
    assert [each.id for each in line.running] == [job.id] and queue.part_drawn(job.id) == 0.75
    assert [(each.origin.user_id, place.place, place.eta_s) for each, place in line.waiting] == [
        (2, 1, pytest.approx(2.5)),
        (3, 2, pytest.approx(6.5)),
    ]


async def test_a_locked_writer_is_a_busy_answer_in_time_and_the_job_never_comes(
    store: Store, queue: Queue, writer: Writer, clock: Clock
):
    holding = writer.stop_now()
    submitting = asyncio.ensure_future(queue.submit(a_request(), an_origin()))
    await clock.advance(ACCEPT_WITHIN_S)
    with pytest.raises(StoreUnavailable):
        await submitting
    writer.go_on()
    await holding
    assert await store.claim() is None
    with pytest.raises(JobNotFound):
        await store.job(JobId(1))


async def test_a_commit_that_came_too_late_is_taken_back(
    store: Store, queue: Queue, writer: Writer, clock: Clock
):
    heard = Heard(queue)
    await writer.stop_at_commit()
    submitting = asyncio.ensure_future(queue.submit(a_request(), an_origin()))
    await writer.stands()
    await clock.advance(ACCEPT_WITHIN_S)
    with pytest.raises(StoreUnavailable):
        await submitting
    writer.go_on()
    await eventually(lambda: heard.stopped)
    job = await store.job(JobId(1))
    assert (job.state, job.origin.interaction_token) == (JobState.CANCELLED, None)
    assert await store.outbox() == [], "nobody is told of a job that was never accepted"


async def test_a_late_commit_is_taken_back_also_when_the_first_try_fails(
    store: Store, queue: Queue, writer: Writer, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "WITHDRAW_AGAIN_S", 0.0)
    tries, withdraw = 0, store.withdraw

    async def fail_twice(job_id: JobId) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise StoreUnavailable("locked")
        await withdraw(job_id)

    monkeypatch.setattr(store, "withdraw", fail_twice)
    heard = Heard(queue)
    await writer.stop_at_commit()
    submitting = asyncio.ensure_future(queue.submit(a_request(), an_origin()))
    await writer.stands()
    await clock.advance(ACCEPT_WITHIN_S)
    with pytest.raises(StoreUnavailable):
        await submitting
    writer.go_on()
    await eventually(lambda: heard.stopped)
    assert (await store.job(JobId(1))).state is JobState.CANCELLED


async def test_a_late_second_copy_of_an_interaction_does_not_take_the_first_back(
    store: Store, queue: Queue, writer: Writer, clock: Clock
):
    origin = an_origin()
    accepted, _ = await queue.submit(a_request(), origin)
    await writer.stop_at_commit()
    again = asyncio.ensure_future(queue.submit(a_request(), origin))
    await writer.stands()
    await clock.advance(ACCEPT_WITHIN_S)
    with pytest.raises(StoreUnavailable):
        await again
    writer.go_on()
    await store.remember("a write", "after it")
    await asyncio.gather(*queue._withdrawals)
    assert (await store.job(accepted.job.id)).state is JobState.QUEUED


async def test_a_submit_that_is_given_up_is_taken_back(store: Store, queue: Queue, writer: Writer):
    heard = Heard(queue)
    await writer.stop_at_commit()
    submitting = asyncio.ensure_future(queue.submit(a_request(), an_origin()))
    await writer.stands()
    submitting.cancel()
    await asyncio.wait({submitting})
    assert submitting.cancelled()
    writer.go_on()
    await eventually(lambda: heard.stopped)
    assert (await store.job(JobId(1))).state is JobState.CANCELLED


# --- cancelling ---


async def test_ones_own_waiting_job_can_be_taken_back(store: Store, queue: Queue):
    job = await a_job(store, user_id=1)
    assert (await queue.cancel(job.id, user_id=1, is_moderator=False)).state is JobState.CANCELLED
    assert await store.claim() is None


async def test_somebody_elses_job_can_be_taken_back_by_a_moderator_alone(store: Store, queue: Queue):
    job = await a_job(store, user_id=1)
    with pytest.raises(NotAllowed) as caught:
        await queue.cancel(job.id, user_id=2, is_moderator=False)
    assert caught.value.code == "not_your_job"
    assert (await store.job(job.id)).state is JobState.QUEUED
    await queue.cancel(job.id, user_id=2, is_moderator=True)
    assert (await store.job(job.id)).state is JobState.CANCELLED


async def test_a_running_job_is_stopped_on_the_card_and_a_waiting_one_is_not(store: Store, queue: Queue):
    heard = Heard(queue)
    await queue.submit(a_request(), an_origin(1))
    running_job = await queue.claim()
    waiting, _ = await queue.submit(a_request(), an_origin(1))
    await queue.cancel(running_job.id, user_id=1, is_moderator=False)
    await queue.cancel(waiting.job.id, user_id=1, is_moderator=False)
    assert heard.stopped == [running_job.id]


async def test_a_job_claimed_while_it_is_cancelled_is_stopped_too(
    store: Store, queue: Queue, monkeypatch: pytest.MonkeyPatch
):
    heard = Heard(queue)
    job = await a_job(store)
    cancel = store.cancel

    async def claim_first(job_id: JobId) -> object:
        await queue.claim()
        return await cancel(job_id)

    monkeypatch.setattr(store, "cancel", claim_first)
    await queue.cancel(job.id, user_id=1, is_moderator=False)
    assert heard.stopped == [job.id]


@pytest.mark.parametrize(
    "state", [JobState.RENDERED, JobState.DELIVERED, JobState.FAILED, JobState.CANCELLED]
)
async def test_a_finished_job_cannot_be_taken_back(store: Store, queue: Queue, state: JobState):
    job = await a_job(store, state)
    with pytest.raises(JobNotFound) as caught:
        await queue.cancel(job.id, user_id=1, is_moderator=False)
    assert caught.value.code == "job_finished"
    assert (await store.job(job.id)).state is state


async def test_an_unknown_job_cannot_be_taken_back(queue: Queue):
    with pytest.raises(JobNotFound):
        await queue.cancel(JobId(404), user_id=1, is_moderator=True)


async def test_the_owner_and_moderators_pass(store: Store):
    job = await a_job(store, user_id=1)
    require_owner(job, user_id=1, is_moderator=False)
    require_owner(job, user_id=2, is_moderator=True)
    with pytest.raises(NotAllowed):
        require_owner(job, user_id=2, is_moderator=False)


# --- for the generator ---


async def test_a_claim_waits_until_something_is_submitted(queue: Queue):
    async with running(queue.claim()) as claiming:
        accepted, _ = await queue.submit(a_request(), an_origin())
        assert (await asyncio.wait_for(claiming, 10)).id == accepted.job.id


async def test_a_bell_between_a_look_and_a_wait_is_heard(
    store: Store, queue: Queue, monkeypatch: pytest.MonkeyPatch
):
    look = store.claim

    async def submit_after_looking() -> object:
        job = await look()
        monkeypatch.setattr(store, "claim", look)
        await queue.submit(a_request(), an_origin())
        return job

    monkeypatch.setattr(store, "claim", submit_after_looking)
    assert (await asyncio.wait_for(queue.claim(), 10)).state is JobState.RUNNING


async def test_a_third_claim_waits_until_a_job_left_the_card(store: Store, queue: Queue):
    for user_id in (1, 2, 3):
        await queue.submit(a_request(), an_origin(user_id))
    first = await queue.claim()
    await queue.claim()
    async with running(queue.claim()) as third:
        await store.complete(first.id, gpu_s=1, model=MODEL, unused_prompt="")
        queue.left_card(first, gpu_s=1)
        assert (await asyncio.wait_for(third, 10)).origin.user_id == 3


async def test_recovery_puts_back_and_learns_the_speed_again(store: Store, queue: Queue):
    done = await a_job(store, JobState.RUNNING)
    await store.complete(done.id, gpu_s=3.0, model=MODEL, unused_prompt="")
    ran = await a_job(store, JobState.RUNNING)
    await queue.recover(MODEL)
    assert (await queue.claim()).id == ran.id
    assert queue.speed.seconds(COST) == pytest.approx(3.0)


async def test_what_left_the_card_is_not_counted_any_more(store: Store, queue: Queue):
    heard = Heard(queue)
    await queue.submit(a_request(), an_origin())
    job = await queue.claim()
    changes = heard.changes
    queue.left_card(job)
    queue.drawn_so_far(job, 0.5)  # a late step
    assert queue.part_drawn(job.id) == 0.0
    assert heard.changes > changes
    assert queue.speed.seconds(1) is None, "a job that was not drawn to its end teaches no speed"


# --- speed ---


def test_speed_is_the_median_so_one_slow_start_does_not_count():
    speed = Speed()
    assert speed.seconds(100) is None
    speed.learn([100.0, 1.0, 1.0])
    assert speed.seconds(100) == 100


def test_speed_forgets_what_is_long_ago():
    speed = Speed()
    speed.learn([100.0] * 50)
    speed.learn([1.0] * module.SPEED_SAMPLES)
    assert speed.seconds(1) == 1
