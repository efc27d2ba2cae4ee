import asyncio
import contextlib
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import zbot.store
from tests.fakes import MODEL, a_job, a_request, accept, an_origin
from zbot import policy
from zbot.errors import JobNotFound, QueueFull, QuotaExceeded, StoreUnavailable
from zbot.job import TRANSITIONS, Job, JobId, JobState
from zbot.policy import Limits
from zbot.store import Store

OPERATIONS: dict[str, tuple[JobState, Callable[[Store, JobId], Awaitable[Any]]]] = {
    "put_back": (JobState.QUEUED, lambda store, job_id: store.put_back(job_id, spend_attempt=True)),
    "complete": (
        JobState.RENDERED,
        lambda store, job_id: store.complete(job_id, gpu_s=1, model=MODEL, unused_prompt=""),
    ),
    "fail": (JobState.FAILED, lambda store, job_id: store.fail(job_id, "generation")),
    "cancel": (JobState.CANCELLED, lambda store, job_id: store.cancel(job_id)),
    "withdraw": (JobState.CANCELLED, lambda store, job_id: store.withdraw(job_id)),
    "delivered": (JobState.DELIVERED, lambda store, job_id: store.delivered(job_id, 99)),
    "undeliverable": (JobState.UNDELIVERABLE, lambda store, job_id: store.undeliverable(job_id)),
}


def ask(store: Store, sql: str) -> Any:
    """Ask the file itself, past the store."""
    with contextlib.closing(sqlite3.connect(store._path)) as connection:
        return connection.execute(sql).fetchall()


def change(store: Store, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(store._path, isolation_level=None)) as connection:
        connection.execute(sql)


@pytest.fixture(autouse=True)
async def sound(store: Store) -> AsyncIterator[None]:
    """After every test: the file is whole, and what was billed is what was rendered."""
    yield
    assert ask(store, "PRAGMA integrity_check") == [("ok",)]
    assert ask(store, "PRAGMA foreign_key_check") == []
    rendered = ask(
        store, "SELECT id FROM job WHERE state IN ('rendered','delivered','undeliverable') ORDER BY id"
    )
    assert ask(store, "SELECT job_id FROM usage ORDER BY job_id") == rendered


# --- accepting ---


async def test_an_accepted_job_comes_back_as_it_was_asked_for(store: Store):
    request = a_request(prompt="雪地里的 '红狐狸' 🦊", seed=2**32 - 1, num_images=3, guidance_scale=0.0)
    origin = an_origin(user_id=2**63 - 1, guild_id=None, locale="zh-CN")
    accepted = await accept(store, request=request, origin=origin)
    assert accepted.is_new
    job = await store.job(accepted.job.id)
    assert (job.request, job.origin, job.state, job.attempts) == (request, origin, JobState.QUEUED, 0)
    assert job == accepted.job
    assert timedelta(0) <= datetime.now(UTC) - job.created_at < timedelta(seconds=10)


async def test_50_at_once_against_a_limit_of_4_accept_exactly_4(store: Store):
    limits = Limits(per_person=4, in_all=100)
    results = await asyncio.gather(*(accept(store, limits=limits) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(result, QuotaExceeded) for result in results) == 46
    assert len(await store.waiting()) == 4


async def test_50_people_at_once_in_a_line_of_4_are_4_accepted(store: Store):
    limits = Limits(per_person=4, in_all=4)
    jobs = (accept(store, origin=an_origin(user_id), limits=limits) for user_id in range(50))
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert sum(isinstance(result, QueueFull) for result in results) == 46
    assert len(await store.waiting()) == 4


async def test_the_same_interaction_again_and_again_is_one_job(store: Store):
    origin = an_origin()
    accepted = await asyncio.gather(*(accept(store, origin=origin) for _ in range(20)))
    assert len({each.job.id for each in accepted}) == 1
    assert sum(each.is_new for each in accepted) == 1
    assert len(await store.waiting()) == 1


async def test_the_same_interaction_is_not_refused_by_a_limit_it_filled_itself(store: Store):
    origin, limits = an_origin(), Limits(per_person=1, in_all=1)
    first = await accept(store, origin=origin, limits=limits)
    again = await accept(store, origin=origin, limits=limits)
    assert (again.job.id, again.is_new) == (first.job.id, False)


async def test_a_job_keeps_its_lora_and_strength(store: Store):
    request = a_request(lora="水墨", lora_scale=-2)
    job = (await accept(store, request=request)).job
    assert job.request == request == (await store.job(job.id)).request
    assert isinstance((await store.job(job.id)).request.lora_scale, float)
    plain = (await accept(store)).job
    assert (plain.request.lora, plain.request.lora_scale) == ("", 1.0)


async def test_the_place_in_line_counts_what_stands_before(store: Store):
    first = await accept(store, origin=an_origin(1))
    second = await accept(store, origin=an_origin(1), request=a_request(num_images=2))
    newcomer = await accept(store, origin=an_origin(2))
    assert [each.jobs_before for each in (first, second, newcomer)] == [0, 1, 1]
    assert newcomer.cost_before == first.job.request.cost
    assert await store.cost_before(second.job) == (2, 2 * first.job.request.cost)


async def test_what_is_withdrawn_before_its_commit_is_not_accepted(store: Store):
    withdrawn = threading.Event()
    withdrawn.set()
    with pytest.raises(StoreUnavailable):
        await store.accept(
            a_request(), an_origin(), admit=lambda load: None, tags=policy.tags, withdrawn=withdrawn
        )
    assert await store.waiting() == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("num_images", 5),
        ("steps", 0),
        ("state", "done"),
        ("width", "wide"),
        ("cost", 0),
    ],
)
async def test_the_schema_refuses_what_no_request_can_be(store: Store, column: str, value: object):
    job = await a_job(store)
    with (
        contextlib.closing(sqlite3.connect(store._path)) as connection,
        pytest.raises(sqlite3.IntegrityError),
    ):
        connection.execute(f"UPDATE job SET {column} = ? WHERE id = ?", (value, job.id))


# --- the steps between states ---


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("state", JobState)
async def test_legal_steps_are_taken_and_no_others(store: Store, state: JobState, operation: str):
    job = await a_job(store, state)
    target, step = OPERATIONS[operation]
    before = ask(store, "SELECT * FROM job")
    result = await step(store, job.id)
    if target in TRANSITIONS[state]:
        assert (await store.job(job.id)).state is target
        if operation in ("put_back", "complete", "fail", "cancel"):
            assert isinstance(result, Job) and result.state is target
    else:
        assert result is None
        assert ask(store, "SELECT * FROM job") == before


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_step_of_an_unknown_job_is_nothing(store: Store, operation: str):
    assert await OPERATIONS[operation][1](store, JobId(404)) is None


async def test_an_unknown_job_is_not_found(store: Store):
    with pytest.raises(JobNotFound):
        await store.job(JobId(404))


async def test_a_card_has_two_places_and_a_third_claim_gets_nothing(store: Store):
    for user_id in range(3):
        await accept(store, origin=an_origin(user_id))
    first, second = await store.claim(), await store.claim()
    assert first and second and first.id != second.id
    assert await store.claim() is None
    await store.put_back(first.id, spend_attempt=False)
    again = await store.claim()
    assert again and again.id == first.id


async def test_ten_claims_at_once_take_two_jobs(store: Store):
    for _ in range(5):
        await accept(store)
    claimed = [job for job in await asyncio.gather(*(store.claim() for _ in range(10))) if job]
    assert len({job.id for job in claimed}) == len(claimed) == 2


@pytest.mark.parametrize("slot", ["0", "1", "2", "NULL"])
async def test_a_third_running_job_is_refused_by_the_schema(store: Store, slot: str):
    for _ in range(3):
        await accept(store)
    await store.claim()
    await store.claim()
    with pytest.raises(sqlite3.IntegrityError):
        change(store, f"UPDATE job SET state = 'running', slot = {slot} WHERE state = 'queued'")


async def test_a_lost_engine_costs_an_attempt_only_when_it_is_said_so(store: Store):
    job = await a_job(store, JobState.RUNNING)
    assert (await store.put_back(job.id, spend_attempt=False) or job).attempts == 0
    await store.claim()
    assert (await store.put_back(job.id, spend_attempt=True) or job).attempts == 1


async def test_a_job_put_back_has_its_old_place_and_seed(store: Store):
    first = await a_job(store, JobState.RUNNING)
    for user_id in (2, 3):
        await accept(store, origin=an_origin(user_id))
    await store.put_back(first.id, spend_attempt=False)
    line = await store.line()
    assert line[0].id == first.id and line[0].request == first.request


async def test_recovery_puts_back_what_ran_and_spends_nothing(store: Store):
    jobs = [(await accept(store)).job for _ in range(3)]
    await store.claim()
    await store.claim()
    recovered = await store.recover()
    assert {job.id for job in recovered} == {job.id for job in jobs[:2]}
    assert all((job.attempts, job.state, job.started_at) == (0, JobState.QUEUED, None) for job in recovered)
    assert [job.id for job in await store.line()] == [job.id for job in jobs]
    assert await store.recover() == []


async def test_the_line_shows_what_runs_before_what_waits(store: Store):
    jobs = [(await accept(store, origin=an_origin(user_id))).job for user_id in (1, 2, 3, 4)]
    await store.claim()
    await store.claim()
    line = await store.line()
    assert [job.id for job in line] == [job.id for job in jobs]
    assert [job.state for job in line] == ["running", "running", "queued", "queued"]


# --- rendered and billed: both or neither ---


async def test_what_is_rendered_is_billed_once(store: Store):
    request = a_request(width=64, height=32, steps=5, num_images=3)
    job = (await accept(store, request=request, origin=an_origin(7))).job
    await store.claim()
    completed = await store.complete(job.id, gpu_s=1.5, model=MODEL, unused_prompt="the tail")
    assert completed and (completed.gpu_s, completed.unused_prompt) == (1.5, "the tail")
    assert await store.complete(job.id, gpu_s=1.5, model=MODEL, unused_prompt="") is None
    ((*row, wait_s, created_at),) = ask(
        store, "SELECT job_id, user_id, pictures, pixels, steps, gpu_s, model, wait_s, created_at FROM usage"
    )
    assert row == [job.id, 7, 3, 64 * 32 * 3, 5, 1.5, MODEL]
    assert 0 <= wait_s < 10 and abs(created_at - time.time()) < 10


async def test_a_fault_between_rendered_and_billed_leaves_neither(store: Store):
    job = await a_job(store, JobState.RUNNING)
    change(store, "CREATE TRIGGER fault BEFORE INSERT ON usage BEGIN SELECT RAISE(ABORT, 'fault'); END")
    with pytest.raises(StoreUnavailable, match="fault"):
        await store.complete(job.id, gpu_s=1, model=MODEL, unused_prompt="")
    assert (await store.job(job.id)).state is JobState.RUNNING
    assert ask(store, "SELECT count(*) FROM usage") == [(0,)]
    change(store, "DROP TRIGGER fault")
    assert await store.complete(job.id, gpu_s=1, model=MODEL, unused_prompt="")


@pytest.mark.parametrize("seed", range(3))
async def test_of_cancelled_and_rendered_exactly_one_happens(store: Store, seed: int):
    rng = random.Random(seed)
    for _ in range(15):
        job = await a_job(store, JobState.RUNNING)
        steps = [store.cancel(job.id), store.complete(job.id, gpu_s=1, model=MODEL, unused_prompt="")]
        rng.shuffle(steps)
        results = [result for result in await asyncio.gather(*steps) if result is not None]
        (winner,) = results
        billed = ask(store, f"SELECT count(*) FROM usage WHERE job_id = {job.id}") == [(1,)]
        assert billed == (winner.state is JobState.RENDERED)
        assert (await store.job(job.id)).state is winner.state


async def test_a_write_that_nobody_waits_for_any_more_is_whole_or_not_there(store: Store):
    job = await a_job(store, JobState.RUNNING)
    completing = asyncio.ensure_future(store.complete(job.id, gpu_s=1, model=MODEL, unused_prompt=""))
    await asyncio.sleep(0)
    completing.cancel()
    await asyncio.wait({completing})
    await accept(store)  # the next write finds no open transaction
    billed = ask(store, "SELECT count(*) FROM usage") == [(1,)]
    assert billed == ((await store.job(job.id)).state is JobState.RENDERED)


# --- outcomes ---


@pytest.mark.parametrize("state", JobState)
async def test_the_outbox_holds_the_outcomes_that_nobody_has_seen(store: Store, state: JobState):
    job = await a_job(store, state)
    expected = state in (JobState.RENDERED, JobState.FAILED, JobState.CANCELLED)
    assert [job.id for job in await store.outbox()] == ([job.id] if expected else [])
    if state in (JobState.FAILED, JobState.CANCELLED):
        await store.told(job.id, 99)
        assert await store.outbox() == []
        assert (await store.job(job.id)).message_id == 99


@pytest.mark.parametrize("ending", ["delivered", "undeliverable", "told", "withdraw"])
async def test_the_interactions_token_is_forgotten_at_the_end(store: Store, ending: str):
    start = {"told": JobState.FAILED, "withdraw": JobState.QUEUED}.get(ending, JobState.RENDERED)
    job = await a_job(store, start)
    assert job.origin.interaction_token
    message = (99,) if ending in ("delivered", "told") else ()
    await getattr(store, ending)(job.id, *message)
    assert (await store.job(job.id)).origin.interaction_token is None


async def test_a_delivered_job_knows_its_message(store: Store):
    job = await a_job(store, JobState.RENDERED)
    await store.set_message(job.id, 55)
    assert (await store.job(job.id)).message_id == 55
    await store.delivered(job.id, 56)
    job = await store.job(job.id)
    assert job.message_id == 56 and job.ended_at is not None


async def test_a_withdrawn_job_is_never_told_of(store: Store):
    job = await a_job(store)
    await store.withdraw(job.id)
    assert await store.outbox() == []
    assert (await store.job(job.id)).state is JobState.CANCELLED


async def test_a_failure_keeps_its_reason(store: Store):
    job = await a_job(store, JobState.RUNNING)
    await store.fail(job.id, "out_of_memory")
    assert (await store.job(job.id)).error_code == "out_of_memory"


async def test_kept_are_the_pictures_of_drawn_jobs_that_nobody_deleted(store: Store):
    kept = {
        (await a_job(store, state)).id
        for state in (JobState.RENDERED, JobState.DELIVERED, JobState.UNDELIVERABLE)
    }
    for state in (JobState.FAILED, JobState.CANCELLED, JobState.DELIVERED):
        await store.deleted((await a_job(store, state)).id)
    await a_job(store)
    assert await store.kept_pictures() == kept
    assert not (await store.job(min(kept))).deleted


# --- sums ---


async def test_usage_is_summed_per_person_and_period(store: Store):
    for user_id, num_images, gpu_s in ((1, 1, 0.5), (1, 4, 1.5), (1, 2, 1.0), (2, 1, 9.0)):
        job = (await accept(store, origin=an_origin(user_id), request=a_request(num_images=num_images))).job
        await store.claim()
        await store.complete(job.id, gpu_s=gpu_s, model=MODEL, unused_prompt="")
        await store.delivered(job.id, 1)
    for job_id, wait_s in ((1, 10.0), (2, 30.0), (3, 20.0)):
        change(store, f"UPDATE usage SET wait_s = {wait_s} WHERE job_id = {job_id}")
    change(store, "UPDATE usage SET created_at = created_at - 3600 WHERE job_id = 1")
    ever = await store.usage(1, None)
    assert (ever.pictures, ever.gpu_s, ever.median_wait_s) == (7, 3.0, 20.0)
    lately = await store.usage(1, datetime.now(UTC) - timedelta(minutes=5))
    assert (lately.pictures, lately.gpu_s) == (6, 2.5)
    nobody = await store.usage(3, None)
    assert (nobody.pictures, nobody.gpu_s, nobody.median_wait_s) == (0, 0.0, None)


async def test_speeds_are_card_seconds_per_pixel_step_newest_first(store: Store):
    for gpu_s in (1.0, 2.0, 3.0):
        job = await a_job(store, JobState.RUNNING)
        await store.complete(job.id, gpu_s=gpu_s, model=MODEL, unused_prompt="")
    cost = a_request().cost
    assert await store.speeds(MODEL, 2) == pytest.approx([3.0 / cost, 2.0 / cost])
    assert await store.speeds("another", 2) == []


async def test_facts_are_remembered_over_a_restart(store: Store):
    assert await store.fact("commands") is None
    await store.remember("commands", "1")
    await store.remember("commands", "2")
    async with Store(store._path) as again:
        assert await again.fact("commands") == "2"


# --- when the disk does not obey ---


@contextlib.contextmanager
def locked_by_another_process(store: Store) -> Iterator[None]:
    code = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "connection.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store._path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"locked\n"
        yield
        process.stdin.close()


async def test_a_locked_database_is_unavailable_in_time_and_nothing_is_half_done(store: Store):
    job = await a_job(store)
    with locked_by_another_process(store):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="locked"):
            await accept(store)
        assert time.monotonic() - began < 1.5
        assert [waiting.job_id for waiting in await store.waiting()] == [job.id], "reading goes on"
    assert (await accept(store)).jobs_before == 1


async def test_a_full_disk_accepts_nothing_and_recovers(store: Store):
    job = await a_job(store, JobState.RUNNING)
    (pages,) = ask(store, "PRAGMA page_count")[0]
    await store._writer._connection.run(
        lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}")
    )
    accepted = 0
    with pytest.raises(StoreUnavailable, match="full"):
        while accepted < 1_000:
            await accept(store, request=a_request(prompt="x" * 3_000))
            accepted += 1
    assert len(await store.waiting()) == accepted
    await store._writer._connection.run(
        lambda connection: connection.execute("PRAGMA max_page_count = 1000000")
    )
    assert await store.complete(job.id, gpu_s=1, model=MODEL, unused_prompt="")
    await accept(store)


async def test_a_statement_that_fails_ends_its_transaction(store: Store):
    change(store, "CREATE TRIGGER fault BEFORE INSERT ON job BEGIN SELECT RAISE(FAIL, 'fault'); END")
    with pytest.raises(StoreUnavailable):
        await accept(store)
    change(store, "DROP TRIGGER fault")
    assert (await accept(store)).is_new


# --- near flat in the length of the history ---


async def test_the_work_of_a_job_does_not_grow_with_the_history(store: Store):
    instructions = 0

    def count() -> int:
        nonlocal instructions
        instructions += 1
        return 0

    for connection in (store._writer._connection, store._reader):
        await connection.run(lambda sqlite: sqlite.set_progress_handler(count, 1))

    async def one_job() -> int:
        """Return how many instructions of SQLite's machine the whole life of a job takes."""
        nonlocal instructions
        await a_job(store)
        instructions = 0
        job = (await accept(store)).job
        await store.waiting()
        await store.cancel((await accept(store)).job.id)
        claimed = await store.claim()
        assert claimed
        await store.complete(claimed.id, gpu_s=1, model=MODEL, unused_prompt="")
        await store.delivered((await store.outbox())[0].id, 1)
        await store.cost_before(job)
        taken = instructions
        await store.cancel(job.id)
        await store.told(job.id, 1)
        return taken

    await one_job()
    with_little = await one_job()
    names = [row[1] for row in ask(store, "PRAGMA table_info(job)") if row[1] not in ("id", "interaction_id")]
    columns = ", ".join(names)
    fresh = "(SELECT min(interaction_id) FROM job) - row_number() OVER ()"
    for _ in range(10):  # doubled ten times
        change(
            store,
            f"INSERT INTO job (interaction_id, {columns})"
            f" SELECT {fresh}, {columns} FROM job WHERE state = 'delivered'",
        )
    change(
        store,
        "INSERT INTO usage SELECT id, user_id, 7, 8, 1, 1, 1, 1, 1, 'fake', 1 FROM job"
        " WHERE state = 'delivered' AND id NOT IN (SELECT job_id FROM usage)",
    )
    assert ask(store, "SELECT count(*) > 1000 FROM job") == [(1,)]
    with_much = await one_job()
    assert with_much < 1.5 * with_little, (with_little, with_much)


@pytest.mark.parametrize("question", ["_BEFORE", "_LOAD"])
async def test_a_place_in_line_is_counted_without_reading_a_job(store: Store, question: str):
    def plan(connection: sqlite3.Connection) -> list[str]:
        values = {"user_id": 1, "interaction_id": 1} if question == "_LOAD" else (1, 1)
        rows = connection.execute(f"EXPLAIN QUERY PLAN {getattr(zbot.store, question)}", values)
        return [row["detail"] for row in rows if re.search("job_(line|waiting)", row["detail"])]

    steps = await store._read(plan)
    assert steps and all("COVERING INDEX" in step for step in steps)
