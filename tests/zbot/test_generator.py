import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes import (
    MODEL,
    Clock,
    FakeEngine,
    Picture,
    Watched,
    a_png,
    a_request,
    an_origin,
    eventually,
    spin,
)
from zbot import generator as module
from zbot import images
from zbot.errors import EngineDead, JobNotFound, NonFiniteOutput, OutOfMemory, StoreUnavailable, WeightsError
from zbot.generator import EngineState, Generator
from zbot.job import Job, JobId, JobState
from zbot.policy import Limits
from zbot.queue import Queue
from zbot.store import Store

NO_PAUSE = (0.0,)


class Bench:
    """A generator with everything around it real but the engine."""

    def __init__(self, store: Store, images_dir: Path) -> None:
        self.store = store
        self.images_dir = images_dir
        self.engine = FakeEngine()
        self.queue = Queue(store, Limits(per_person=100, in_all=100))
        self.watched = Watched()
        self.rendered = 0
        self.generator = Generator(
            store=store,
            queue=self.queue,
            engine=self.engine,
            model=MODEL,
            images_dir=images_dir,
            watcher=self.watched,
            rendered=self._rendered,
        )
        self.queue.connect(stop_drawing=self.generator.stop_drawing, line_changed=lambda: None)
        self._task: asyncio.Task[None] | None = None

    def _rendered(self) -> None:
        self.rendered += 1

    def start(self) -> None:
        self._task = asyncio.create_task(self.generator.run())

    async def stop(self) -> None:
        self.generator.stop()
        if self._task is not None:
            await asyncio.wait_for(self._task, 10)

    @property
    def has_stopped(self) -> bool:
        return self._task is not None and self._task.done()

    async def submit(self, user_id: int = 1, **request: object) -> Job:
        accepted, _ = await self.queue.submit(a_request(**request), an_origin(user_id))
        return accepted.job

    async def state(self, job: Job) -> JobState:
        return (await self.store.job(job.id)).state

    async def reaches(self, job: Job, state: JobState) -> Job:
        """Wait until a job stands in a state; return it as it then is."""

        async def there() -> Job | None:
            now = await self.store.job(job.id)
            return now if now.state is state else None

        return await eventually(there)

    async def cancel(self, job: Job) -> None:
        await self.queue.cancel(job.id, user_id=job.origin.user_id, is_moderator=False)

    async def usage(self, user_id: int = 1) -> int:
        return (await self.store.usage(user_id, None)).pictures

    async def settle(self) -> None:
        """Let everything happen that would happen by now: on the event loop, in the database, on the disk."""
        for _ in range(4):
            await self.store._writer._connection.run(lambda connection: None)
            await asyncio.to_thread(lambda: None)
            await spin()

    def files(self) -> set[str]:
        return {path.name for path in self.images_dir.iterdir()}


@pytest.fixture
async def bench(store: Store, data_dir: Path) -> AsyncIterator[Bench]:
    bench = Bench(store, data_dir / "images")
    yield bench
    for picture in bench.engine.pictures:
        if not picture.outcome.done():
            picture.fail(EngineDead("the test is over"))
    await bench.stop()
    assert bench.engine.violations == []
    assert bench.engine.closed
    assert not await store.recover(), "a job was left running though nothing went wrong at the end"
    # I4: no file without its row, no rendered row without its files.
    kept = [await store.job(job_id) for job_id in await store.kept_pictures()]
    assert bench.files() == {name for job in kept for name in job.file_names}


# --- the straight way ---


async def test_a_job_becomes_pictures_on_disk_a_row_and_a_bill(bench: Bench):
    job = await bench.submit(seed=7, num_images=3)
    bench.start()
    done = await bench.reaches(job, JobState.RENDERED)
    assert done.gpu_s == pytest.approx(1.5)
    assert await bench.usage() == 3
    for index, name in enumerate(job.file_names):
        assert (bench.images_dir / name).read_bytes() == a_png(7 + index)
    await eventually(lambda: bench.rendered)


async def test_steps_are_heard_picture_by_picture(bench: Bench):
    job = await bench.submit(num_images=2, steps=2)
    bench.start()
    await bench.reaches(job, JobState.RENDERED)
    assert bench.watched.steps == [(job.id, 1, 1), (job.id, 1, 2), (job.id, 2, 1), (job.id, 2, 2)]


async def test_what_did_not_fit_of_the_prompt_is_kept(bench: Bench):
    bench.engine.hold()
    job = await bench.submit()
    bench.start()
    (await bench.engine.begun()).finish(unused_prompt="the tail")
    assert (await bench.reaches(job, JobState.RENDERED)).unused_prompt == "the tail"


async def test_the_queue_learns_the_speed_and_how_far_the_card_is(bench: Bench):
    bench.engine.hold()
    job = await bench.submit(steps=4, num_images=2)
    bench.start()
    first = await bench.engine.begun()
    first.step(2)
    assert bench.queue.part_drawn(job.id) == pytest.approx(0.25)
    first.finish(gpu_s=1.0)
    (await bench.engine.begun()).finish(gpu_s=1.0)
    await bench.reaches(job, JobState.RENDERED)
    await eventually(lambda: bench.queue.speed.seconds(job.request.cost))
    assert bench.queue.speed.seconds(job.request.cost) == pytest.approx(2.0)


# --- two in hand ---


async def test_the_next_job_begins_when_the_card_is_free_and_not_before(bench: Bench):
    bench.engine.hold()
    await bench.submit(1)
    await bench.submit(2)
    bench.start()
    first = await bench.engine.begun()
    first.step(first.request.steps - 1)
    await bench.settle()
    assert bench.engine.idle, "the card was not free yet"
    first.step()
    second = await bench.engine.begun()
    assert not first.outcome.done(), "the first is still being decoded"
    second.step()
    first.finish()
    second.finish()


async def test_a_third_job_waits_until_one_of_two_is_saved(bench: Bench):
    bench.engine.hold()
    jobs = [await bench.submit(user_id) for user_id in (1, 2, 3)]
    bench.start()
    first = await bench.engine.begun()
    first.last_step()
    second = await bench.engine.begun()
    second.last_step()
    await bench.settle()
    assert bench.engine.idle and await bench.state(jobs[2]) is JobState.QUEUED
    first.finish()
    (await bench.engine.begun()).finish()
    second.finish()
    await bench.reaches(jobs[2], JobState.RENDERED)


async def test_pictures_of_one_job_overlap_in_the_same_way(bench: Bench):
    bench.engine.hold()
    job = await bench.submit(num_images=2)
    bench.start()
    first = await bench.engine.begun()
    first.last_step()
    second = await bench.engine.begun()
    second.finish()
    first.finish()
    await bench.reaches(job, JobState.RENDERED)


# --- taken back ---


async def overlapped(bench: Bench) -> tuple[Job, Job, Picture, Picture]:
    """Return two jobs in hand: the first is being decoded, the second is on the card."""
    bench.engine.hold()
    jobs = [await bench.submit(user_id) for user_id in (1, 2)]
    bench.start()
    first = await bench.engine.begun()
    first.last_step()
    second = await bench.engine.begun()
    second.step()
    return jobs[0], jobs[1], first, second


async def test_cancelling_one_of_two_in_hand_never_touches_its_neighbour(bench: Bench):
    one, other, first, second = await overlapped(bench)
    await bench.cancel(other)
    await eventually(lambda: second.was_cancelled)
    assert not first.was_cancelled
    first.finish()
    await bench.reaches(one, JobState.RENDERED)
    assert await bench.state(other) is JobState.CANCELLED
    assert (await bench.usage(1), await bench.usage(2)) == (1, 0)


async def test_cancelling_the_one_being_decoded_never_touches_the_one_on_the_card(bench: Bench):
    one, other, first, second = await overlapped(bench)
    await bench.cancel(one)
    await eventually(lambda: first.was_cancelled)
    assert not second.was_cancelled
    second.finish()
    await bench.reaches(other, JobState.RENDERED)
    assert (await bench.usage(1), await bench.usage(2)) == (0, 1)


async def test_a_cancelled_job_is_not_drawn_again_and_the_next_one_is(bench: Bench):
    bench.engine.hold()
    job, following = await bench.submit(1), await bench.submit(2)
    bench.start()
    picture = await bench.engine.begun()
    await bench.cancel(job)
    (await bench.engine.begun()).finish()
    await bench.reaches(following, JobState.RENDERED)
    assert picture.was_cancelled and await bench.state(job) is JobState.CANCELLED
    assert len(bench.engine.pictures) == 2


async def test_all_pictures_of_a_cancelled_job_stop(bench: Bench):
    bench.engine.hold()
    job = await bench.submit(num_images=3)
    bench.start()
    first = await bench.engine.begun()
    first.last_step()
    second = await bench.engine.begun()
    await bench.cancel(job)
    await eventually(lambda: first.was_cancelled and second.was_cancelled)
    await bench.settle()
    assert len(bench.engine.pictures) == 2


async def test_a_job_cancelled_while_it_is_saved_is_neither_billed_nor_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    complete = bench.store.complete

    async def cancel_first(job_id: JobId, **facts: object) -> Job | None:
        await bench.cancel(await bench.store.job(job_id))
        return await complete(job_id, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.store, "complete", cancel_first)
    job = await bench.submit()
    bench.start()
    await bench.reaches(job, JobState.CANCELLED)
    await eventually(lambda: bench.rendered)
    assert await bench.usage() == 0 and bench.files() == set()


async def test_cancelling_races_completing_and_one_of_them_wins(bench: Bench):
    bench.start()
    for turns in range(25):
        job = await bench.submit()
        await spin(turns)
        try:
            await bench.cancel(job)
            expected = JobState.CANCELLED
        except JobNotFound:
            expected = JobState.RENDERED
        await bench.reaches(job, expected)
    await bench.stop()
    assert await bench.usage() == len(await bench.store.kept_pictures())


# --- the engine dies ---


async def test_a_death_is_charged_to_the_job_on_the_card_alone(bench: Bench):
    one, other, *_ = await overlapped(bench)
    bench.engine.die()
    for _ in range(2):
        (await bench.engine.begun()).finish()
    assert (await bench.reaches(other, JobState.RENDERED)).attempts == 1
    assert (await bench.reaches(one, JobState.RENDERED)).attempts == 0
    assert bench.engine.loads == 2


async def test_whose_pictures_were_in_hand_are_then_drawn_alone(bench: Bench):
    one, other, *_ = await overlapped(bench)
    third = await bench.submit(3)
    bench.engine.die()
    drawn: list[int] = []
    for _ in range(2):
        picture = await bench.engine.begun()
        picture.last_step()
        await bench.settle()
        assert bench.engine.idle, "a suspect is not alone"
        picture.finish()
        drawn.append(picture.request.seed)
    (await bench.engine.begun()).finish()
    await bench.reaches(third, JobState.RENDERED)
    assert {await bench.state(one), await bench.state(other)} == {JobState.RENDERED}


async def test_a_suspect_waits_for_whoever_is_still_in_hand(bench: Bench):
    bench.engine.hold()
    suspect = await bench.submit(1)
    bench.start()
    await bench.engine.begun()
    newcomer = await bench.submit(2)
    bench.generator._suspects.add(newcomer.id)
    first = bench.engine.pictures[0]
    first.last_step()
    await bench.settle()
    assert bench.engine.idle, "the suspect began beside another"
    first.finish()
    (await bench.engine.begun()).finish()
    await bench.reaches(newcomer, JobState.RENDERED)
    assert await bench.state(suspect) is JobState.RENDERED


async def test_a_second_death_fails_the_job_and_the_next_one_is_drawn(bench: Bench):
    bench.engine.script.extend([EngineDead(), EngineDead()])
    job, following = await bench.submit(1), await bench.submit(2)
    bench.start()
    failed = await bench.reaches(job, JobState.FAILED)
    assert (failed.error_code, failed.attempts) == ("engine_dead", 1)
    await bench.reaches(following, JobState.RENDERED)
    assert await bench.usage(1) == 0


async def test_a_hang_has_its_own_sentence(bench: Bench):
    bench.engine.script.extend([EngineDead(code="engine_stalled")] * 2)
    job = await bench.submit()
    bench.start()
    assert (await bench.reaches(job, JobState.FAILED)).error_code == "engine_stalled"


async def test_a_death_with_nothing_on_the_card_costs_nobody_an_attempt(bench: Bench):
    bench.engine.hold()
    job = await bench.submit()
    bench.start()
    picture = await bench.engine.begun()
    picture.last_step()
    bench.engine.die()  # while it was being decoded
    (await bench.engine.begun()).finish()
    assert (await bench.reaches(job, JobState.RENDERED)).attempts == 0
    assert bench.engine.loads == 2


async def test_of_two_pictures_of_one_job_the_one_on_the_card_decides(bench: Bench):
    bench.engine.hold()
    job = await bench.submit(num_images=2)
    bench.start()
    first = await bench.engine.begun()
    first.last_step()
    second = await bench.engine.begun()
    second.step()
    bench.engine.die()
    for _ in range(2):
        (await bench.engine.begun()).finish()
    assert (await bench.reaches(job, JobState.RENDERED)).attempts == 1


async def test_an_engine_that_died_unnoticed_is_loaded_again_at_no_ones_cost(bench: Bench):
    bench.start()
    await eventually(lambda: bench.generator.status.state is EngineState.READY)
    bench.engine.loaded = False
    job = await bench.submit()
    assert (await bench.reaches(job, JobState.RENDERED)).attempts == 0


async def test_three_deaths_in_a_short_time_are_said_and_slow_the_next_load_down(bench: Bench, clock: Clock):
    bench.engine.script.extend([EngineDead()] * 3)
    jobs = [await bench.submit(user_id) for user_id in (1, 2)]
    bench.start()
    await eventually(lambda: bench.generator.status.state is EngineState.UNAVAILABLE)
    assert "3 times" in bench.generator.status.problem
    loads = bench.engine.loads
    await bench.settle()
    assert bench.engine.loads == loads == 3
    await clock.advance(module.SLOW_DOWN_S)
    await bench.reaches(jobs[1], JobState.RENDERED)
    assert bench.engine.loads == 4


# --- a job fails by itself ---


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutOfMemory("48 GB wanted"), "out_of_memory"),
        (NonFiniteOutput("nan"), "non_finite"),
        (ValueError("?"), "internal"),
    ],
)
async def test_an_error_fails_its_one_job_and_no_other(bench: Bench, error: Exception, code: str):
    bench.engine.script.append(error)
    job, following = await bench.submit(1), await bench.submit(2)
    bench.start()
    assert (await bench.reaches(job, JobState.FAILED)).error_code == code
    await bench.reaches(following, JobState.RENDERED)
    assert (bench.engine.loads, await bench.usage(1)) == (1, 0)


async def test_a_job_that_fails_at_its_second_picture_keeps_no_picture(bench: Bench):
    bench.engine.script.extend([None, NonFiniteOutput("nan")])
    job = await bench.submit(num_images=3)
    bench.start()
    await bench.reaches(job, JobState.FAILED)
    assert bench.files() == set() and len(bench.engine.pictures) == 2


async def test_an_error_before_any_step_frees_the_card(bench: Bench):
    bench.engine.hold()
    job, following = await bench.submit(1), await bench.submit(2)
    bench.start()
    (await bench.engine.begun()).fail(OutOfMemory("at once"))
    (await bench.engine.begun()).finish()
    await bench.reaches(following, JobState.RENDERED)
    assert await bench.state(job) is JobState.FAILED


async def test_a_file_that_cannot_be_removed_does_not_hold_the_card(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", read_only)
        bench.engine.script.append(NonFiniteOutput("nan"))
        job, following = await bench.submit(1), await bench.submit(2)
        bench.start()
        await bench.reaches(job, JobState.FAILED)
    await bench.reaches(following, JobState.RENDERED)


# --- the engine does not load ---


async def test_while_the_model_is_missing_people_are_answered_and_then_it_draws(bench: Bench, clock: Clock):
    bench.engine.load_errors.append(WeightsError("vae.safetensors is missing; run: zbot weights fetch"))
    bench.start()
    await eventually(lambda: bench.generator.status.state is EngineState.UNAVAILABLE)
    assert "vae.safetensors" in bench.generator.status.problem
    job = await bench.submit()
    assert (await bench.queue.line()).waiting[0][0].id == job.id
    await clock.advance(module.RETRY_S[0])
    await bench.reaches(job, JobState.RENDERED)
    status = bench.generator.status
    assert (status.state, status.card, status.problem) == (EngineState.READY, bench.engine.card, "")


async def test_loading_is_followed_in_the_log_at_the_first_try_and_by_its_error_after_that(
    bench: Bench, clock: Clock, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger=module.log.name)
    bench.engine.load_errors.extend([WeightsError("missing"), WeightsError("missing")])
    bench.start()
    await eventually(lambda: bench.generator.status.state is EngineState.UNAVAILABLE)
    await clock.advance(module.RETRY_S[0])
    await eventually(lambda: bench.engine.loads == 2)
    assert [record.getMessage() for record in caplog.records] == [
        "loading transformer: 1 of 2 files, 0.1 s so far",
        "the engine is not available: missing",
    ]


async def test_the_pauses_between_loads_grow(bench: Bench, clock: Clock):
    bench.engine.load_errors.extend([WeightsError("missing")] * 6)
    bench.start()
    for loads, pause_s in enumerate((*module.RETRY_S, module.RETRY_S[-1]), start=1):
        await eventually(lambda loads=loads: bench.engine.loads == loads)
        await clock.advance(pause_s - 0.5)
        assert bench.engine.loads == loads
        await clock.advance(0.5)
    await eventually(lambda: bench.engine.loads == 6)


async def test_stopping_does_not_wait_for_a_model_that_does_not_load(bench: Bench):
    bench.engine.load_errors.append(WeightsError("missing"))
    bench.start()
    await eventually(lambda: bench.generator.status.state is EngineState.UNAVAILABLE)
    await bench.stop()


# --- the disk and the database do not obey ---


async def test_a_full_disk_keeps_the_picture_and_saves_it_later(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    write = images.write_atomic

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "write_atomic", full)
    job = await bench.submit()
    bench.start()
    await eventually(lambda: "No space left" in bench.generator.status.problem)
    assert await bench.state(job) is JobState.RUNNING and await bench.usage() == 0
    monkeypatch.setattr(images, "write_atomic", write)
    await clock.advance(module.RETRY_S[0])
    await bench.reaches(job, JobState.RENDERED)
    await eventually(lambda: bench.generator.status.problem == "")
    assert len(bench.engine.pictures) == 1, "it was drawn once"


async def test_a_locked_database_keeps_the_picture_and_bills_it_later(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    complete = bench.store.complete

    async def locked(job_id: JobId, **facts: object) -> Job | None:
        monkeypatch.setattr(bench.store, "complete", complete)
        raise StoreUnavailable("database is locked")

    monkeypatch.setattr(bench.store, "complete", locked)
    job = await bench.submit()
    bench.start()
    await eventually(lambda: "locked" in bench.generator.status.problem)
    await clock.advance(module.RETRY_S[0])
    await bench.reaches(job, JobState.RENDERED)
    assert len(bench.engine.pictures) == 1


async def test_a_claim_that_fails_is_tried_again(bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    claim, failed = bench.store.claim, asyncio.Event()

    async def locked() -> Job | None:
        monkeypatch.setattr(bench.store, "claim", claim)
        failed.set()
        raise StoreUnavailable("database is locked")

    monkeypatch.setattr(bench.store, "claim", locked)
    job = await bench.submit()
    bench.start()
    await failed.wait()
    await clock.advance(module.RETRY_S[0])
    await bench.reaches(job, JobState.RENDERED)


# --- stopping ---


async def test_a_stop_lets_the_picture_in_hand_end(bench: Bench):
    bench.engine.hold()
    job, waiting = await bench.submit(1), await bench.submit(2)
    bench.start()
    picture = await bench.engine.begun()
    bench.generator.stop()
    await bench.settle()
    assert not picture.was_cancelled
    picture.finish()
    await bench.stop()
    assert await bench.state(job) is JobState.RENDERED
    assert await bench.state(waiting) is JobState.QUEUED


async def test_a_stop_puts_back_what_takes_too_long_and_spends_no_attempt(bench: Bench, clock: Clock):
    one, other, first, second = await overlapped(bench)
    bench.generator.stop()
    await clock.advance(module.FINISH_WITHIN_S - 1)
    assert not first.was_cancelled and not second.was_cancelled
    await clock.advance(1)
    await bench.stop()
    assert first.was_cancelled and second.was_cancelled
    for job in (one, other):
        now = await bench.store.job(job.id)
        assert (now.state, now.attempts, now.request) == (JobState.QUEUED, 0, job.request)


async def test_a_stop_ends_although_the_database_does_not_answer(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    async def locked(job_id: JobId, **facts: object) -> Job | None:
        raise StoreUnavailable("database is locked")

    bench.engine.hold()
    job = await bench.submit()
    bench.start()
    await bench.engine.begun()
    monkeypatch.setattr(bench.store, "put_back", locked)
    bench.generator.stop()
    await clock.advance(module.FINISH_WITHIN_S)
    await clock.advance(module.PUT_BACK_WITHIN_S)
    await bench.stop()
    assert [each.id for each in await bench.store.recover()] == [job.id], "the next start puts it back"


async def test_a_stop_while_nothing_is_drawn_is_immediate(bench: Bench):
    bench.start()
    await eventually(lambda: bench.generator.status.state is EngineState.READY)
    await bench.stop()
    assert bench.engine.closed
