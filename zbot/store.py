"""The only SQL of the bot: jobs, usage and the fair clock; every write is one short transaction."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from zbot import database, policy
from zbot.errors import JobNotFound, StoreUnavailable
from zbot.job import TRANSITIONS, Job, JobId, JobState, Origin
from zbot.policy import Load, Waiting
from zbot.request import ImageRequest
from zbot.writer import Writer

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A job just accepted, and what stood before it in the line at that moment."""

    job: Job
    jobs_before: int  # waiting ones; what is on the card is not counted
    cost_before: int  # their work in pixel-steps
    is_new: bool  # False: this interaction was accepted before


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """What somebody used in a period."""

    pictures: int
    gpu_s: float
    median_wait_s: float | None  # None without any job


class Store:
    """The database; use as `async with Store(path) as store`. Safe to call from any coroutine of one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Writer
        self._reader: database.Connection

    async def __aenter__(self) -> Self:
        """Open, check and migrate the file.

        Raises:
            ConfigError: the disk cannot be used, or the database is damaged or newer than this zbot.
        """
        database.check_platform(self._path.parent)
        connection = await database.connect(self._path, query_only=False)
        try:
            await connection.run(partial(database.prepare, path=self._path))
            self._reader = await database.connect(self._path, query_only=True)
        except BaseException as error:
            await connection.close()
            if isinstance(error, sqlite3.Error):
                raise database.unusable(self._path, str(error)) from error
            raise
        self._writer = Writer(connection)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._writer.close()
        await self._reader.close()

    async def _read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._reader.run(question)
        except sqlite3.DatabaseError as error:
            raise StoreUnavailable(str(error)) from error

    # --- the life of a job ---

    def accept(
        self,
        request: ImageRequest,
        origin: Origin,
        *,
        admit: Callable[[Load], None],
        tags: Callable[[Load, int], tuple[int, int]],
        withdrawn: threading.Event,
    ) -> asyncio.Future[Accepted]:
        """Insert a job if `admit` does not raise; an interaction seen before gives back its first job.

        Once `withdrawn` is set, nothing is inserted any more.

        Raises, through the future:
            StoreUnavailable: the file is locked, full or read-only, or `withdrawn` was set.
            QuotaExceeded, QueueFull: from `admit`; nothing is written.
        """
        return self._writer.write(
            partial(_accept, request=request, origin=origin, admit=admit, tags=tags, withdrawn=withdrawn)
        )

    async def set_message(self, job_id: JobId, message_id: int) -> None:
        """Remember which message answers this job: without haste, and also if the caller is cancelled meanwhile."""
        change = _statement("UPDATE job SET message_id = ? WHERE id = ?", message_id, job_id)
        await asyncio.shield(self._writer.write(change, urgent=False))

    async def claim(self) -> Job | None:
        """Move the next job to `running`; None when none waits or both places of the card are taken."""
        return await self._writer.write(_claim)

    async def put_back(self, job_id: JobId, *, spend_attempt: bool) -> Job | None:
        """Return a running job to its old place in the line; None if it is not running any more."""
        return await self._move(job_id, JobState.QUEUED, "attempts = attempts + ?", int(spend_attempt))

    async def complete(self, job_id: JobId, *, gpu_s: float, model: str, unused_prompt: str) -> Job | None:
        """Mark a running job rendered and write its usage, both or neither; None if it is not running any more."""
        return await self._writer.write(
            partial(_complete, job_id=job_id, gpu_s=gpu_s, model=model, unused_prompt=unused_prompt)
        )

    async def fail(self, job_id: JobId, error_code: str) -> Job | None:
        """Mark a running job failed; None if it is not running any more."""
        return await self._move(job_id, JobState.FAILED, "ended_at = ?, error_code = ?", _now(), error_code)

    async def cancel(self, job_id: JobId) -> Job | None:
        """Take back a waiting or running job; None if it is neither."""
        return await self._writer.write(
            partial(_cancel, job_id=job_id, also="ended_at = ?", values=(_now(),))
        )

    async def withdraw(self, job_id: JobId) -> None:
        """Take back a job that was never answered for: cancelled, and nothing is told."""
        also, values = "ended_at = ?, told_at = ?, interaction_token = NULL", (_now(), _now())
        await self._writer.write(partial(_cancel, job_id=job_id, also=also, values=values))

    async def delivered(self, job_id: JobId, message_id: int) -> None:
        """Note that the pictures stand in the channel; the interaction's token is forgotten."""
        await self._move(
            job_id,
            JobState.DELIVERED,
            "message_id = ?, told_at = ?, ended_at = ?, interaction_token = NULL",
            message_id,
            _now(),
            _now(),
        )

    async def undeliverable(self, job_id: JobId) -> None:
        """Note that the pictures cannot be posted: the channel is gone or closed to the bot."""
        await self._move(
            job_id,
            JobState.UNDELIVERABLE,
            "told_at = ?, ended_at = ?, interaction_token = NULL",
            _now(),
            _now(),
        )

    async def told(self, job_id: JobId, message_id: int | None) -> None:
        """Note that a failed or cancelled job's outcome was told by this message, or cannot be."""
        change = "UPDATE job SET message_id = ?, told_at = ?, interaction_token = NULL WHERE id = ?"
        await self._writer.write(_statement(change, message_id, _now(), job_id))

    async def deleted(self, job_id: JobId) -> None:
        """Note that a job's pictures were removed on request."""
        await self._writer.write(_statement("UPDATE job SET deleted_at = ? WHERE id = ?", _now(), job_id))

    async def recover(self) -> list[Job]:
        """Return what ran at the last end to the line, at no cost in attempts; call once, before the first claim.

        Raises:
            ConfigError: the file cannot be written now.
        """

        def change(connection: sqlite3.Connection) -> list[Job]:
            rows = connection.execute(
                "UPDATE job SET state = 'queued', slot = NULL, started_at = NULL WHERE state = 'running' RETURNING *"
            ).fetchall()
            return [_job(row) for row in rows]

        try:
            return await self._writer.write(change)
        except StoreUnavailable as error:
            raise database.unusable(self._path, str(error)) from error

    # --- questions ---

    async def job(self, job_id: JobId) -> Job:
        """Return a job.

        Raises:
            JobNotFound: no such job.
        """
        row = await self._one("SELECT * FROM job WHERE id = ?", job_id)
        if row is None:
            raise JobNotFound(job=job_id)
        return _job(row)

    async def line(self) -> list[Job]:
        """Return the running jobs and then the waiting ones in the order they will be drawn."""
        rows = await self._all(
            "SELECT * FROM (SELECT * FROM job WHERE state = 'running' ORDER BY started_at)"
            " UNION ALL SELECT * FROM (SELECT * FROM job WHERE state = 'queued' ORDER BY start_tag, id)"
        )
        return [_job(row) for row in rows]

    async def waiting(self) -> list[Waiting]:
        """Return the waiting jobs in the order they will be drawn, as much of them as the line needs."""
        rows = await self._all(
            "SELECT id, user_id, cost, start_tag FROM job WHERE state = 'queued' ORDER BY start_tag, id"
        )
        return [Waiting(job_id=row[0], user_id=row[1], cost=row[2], start_tag=row[3]) for row in rows]

    async def cost_before(self, job: Job) -> tuple[int, int]:
        """Return how many waiting jobs stand before this one, and their work in pixel-steps."""
        row = await self._one(_BEFORE, job.start_tag, job.id)
        return (row[0], row[1]) if row else (0, 0)

    async def outbox(self) -> list[Job]:
        """Return the jobs whose outcome the channel does not show yet, oldest first."""
        rows = await self._all(
            "SELECT * FROM job WHERE told_at IS NULL AND state IN ('rendered', 'failed', 'cancelled') ORDER BY id"
        )
        return [_job(row) for row in rows]

    async def kept_pictures(self) -> set[JobId]:
        """Return the jobs whose picture files belong on disk."""
        rows = await self._all(
            "SELECT id FROM job WHERE state IN ('rendered', 'delivered', 'undeliverable') AND deleted_at IS NULL"
        )
        return {JobId(row[0]) for row in rows}

    async def speeds(self, model: str, count: int) -> list[float]:
        """Return card seconds per pixel-step of the last `count` jobs of a model, newest first."""
        rows = await self._all(
            "SELECT gpu_s / (pixels * steps) FROM usage WHERE model = ? ORDER BY job_id DESC LIMIT ?",
            model,
            count,
        )
        return [row[0] for row in rows]

    async def usage(self, user_id: int, since: datetime | None) -> UsageSum:
        """Sum up what somebody used since a moment, or ever."""
        start = since.timestamp() if since else 0.0

        def question(connection: sqlite3.Connection) -> UsageSum:
            jobs, pictures, gpu_s = connection.execute(
                "SELECT count(*), total(pictures), total(gpu_s) FROM usage WHERE user_id = ? AND created_at >= ?",
                (user_id, start),
            ).fetchone()
            middle = connection.execute(
                "SELECT wait_s FROM usage WHERE user_id = ? AND created_at >= ? ORDER BY wait_s LIMIT 1 OFFSET ?",
                (user_id, start, max(0, jobs - 1) // 2),
            ).fetchone()
            return UsageSum(pictures=int(pictures), gpu_s=gpu_s, median_wait_s=middle[0] if middle else None)

        return await self._read(question)

    async def fact(self, name: str) -> str | None:
        """Return a remembered fact."""
        row = await self._one("SELECT value FROM fact WHERE name = ?", name)
        return row[0] if row else None

    async def remember(self, name: str, value: str) -> None:
        """Remember a fact over restarts."""
        await self._writer.write(
            _statement(
                "INSERT INTO fact VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", name, value
            )
        )

    async def back_up(self, target: Path) -> None:
        """Write a consistent copy beside the running bot: to a temporary name, checked, then renamed."""
        await self._read(partial(database.back_up, target=target))

    # --- how the above is said ---

    async def _move(self, job_id: JobId, state: JobState, also: str, *values: object) -> Job | None:
        return await self._writer.write(partial(_move, job_id=job_id, state=state, also=also, values=values))

    async def _one(self, sql: str, *values: object) -> Any:
        return await self._read(lambda connection: connection.execute(sql, values).fetchone())

    async def _all(self, sql: str, *values: object) -> list[Any]:
        return await self._read(lambda connection: connection.execute(sql, values).fetchall())


_BEFORE = "SELECT count(*), ifnull(sum(cost), 0) FROM job WHERE state = 'queued' AND (start_tag, id) < (?, ?)"

# The job of this interaction if it came before, and every number that `policy` needs, each from an index: near flat in
# the length of the history.
_LOAD = """
SELECT (SELECT id FROM job WHERE interaction_id = :interaction_id),
       (SELECT count(*) FROM job WHERE state = 'queued' AND user_id = :user_id),
       (SELECT count(*) FROM job WHERE state = 'queued'),
       (SELECT count(*) FROM job WHERE state = 'running'),
       virtual_time, served_until,
       (SELECT ifnull(max(finish_tag), 0) FROM job WHERE user_id = :user_id AND state <> 'cancelled')
FROM fair_clock
"""

_INSERT = """
INSERT INTO job (interaction_id, interaction_token, application_id, user_id, guild_id, channel_id, locale,
                 attachment_limit_bytes, parent_id, prompt, seed, steps, guidance_scale, width, height, num_images,
                 lora, lora_scale, cost, start_tag, finish_tag, created_at)
VALUES (:interaction_id, :interaction_token, :application_id, :user_id, :guild_id, :channel_id, :locale,
        :attachment_limit_bytes, :parent_id, :prompt, :seed, :steps, :guidance_scale, :width, :height, :num_images,
        :lora, :lora_scale, :cost, :start_tag, :finish_tag, :created_at)
RETURNING id
"""

# What a person asked for after a job that is taken back: those moved behind it, and now move up again.
_LATER = "user_id = ? AND state = 'queued' AND start_tag >= ?"

_CLAIM = """
UPDATE job SET state = 'running', slot = ?, started_at = ?
WHERE id = (SELECT id FROM job WHERE state = 'queued' ORDER BY start_tag, id LIMIT 1)
RETURNING *
"""


def _statement(sql: str, *values: object) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute(sql, values)


def _accept(
    connection: sqlite3.Connection,
    request: ImageRequest,
    origin: Origin,
    admit: Callable[[Load], None],
    tags: Callable[[Load, int], tuple[int, int]],
    withdrawn: threading.Event,
) -> Accepted:
    earlier, mine, everybody, running, virtual_time, served_until, finish = connection.execute(
        _LOAD, {"user_id": origin.user_id, "interaction_id": origin.interaction_id}
    ).fetchone()
    if earlier is not None:
        job = _job(connection.execute("SELECT * FROM job WHERE id = ?", (earlier,)).fetchone())
    else:
        load = Load(
            waiting_of_person=mine,
            waiting_in_all=everybody,
            busy=bool(everybody or running),
            virtual_time=virtual_time,
            served_until=served_until,
            person_finish=finish,
        )
        admit(load)
        start_tag, finish_tag = tags(load, request.cost)
        if not load.busy:  # time stands at the end of the last work for whoever comes next, too
            connection.execute("UPDATE fair_clock SET virtual_time = max(virtual_time, served_until)")
        created_at = _now()
        values = {name: getattr(origin, name) for name in Origin.__slots__}
        values |= {name: getattr(request, name) for name in ImageRequest.__slots__}
        values |= {
            "cost": request.cost,
            "start_tag": start_tag,
            "finish_tag": finish_tag,
            "created_at": created_at,
        }
        (number,) = connection.execute(_INSERT, values).fetchone()
        if withdrawn.is_set():  # the person was told "busy": the transaction is rolled back
            raise sqlite3.OperationalError("the answer came too late")
        job = Job(
            id=JobId(number),
            state=JobState.QUEUED,
            request=request,
            origin=origin,
            message_id=None,
            attempts=0,
            start_tag=start_tag,
            finish_tag=finish_tag,
            created_at=datetime.fromtimestamp(created_at, UTC),
        )
    before, cost_before = connection.execute(_BEFORE, (job.start_tag, job.id)).fetchone()
    return Accepted(job=job, jobs_before=before, cost_before=cost_before, is_new=earlier is None)


def _claim(connection: sqlite3.Connection) -> Job | None:
    taken = {row[0] for row in connection.execute("SELECT slot FROM job WHERE state = 'running'")}
    free = next((slot for slot in (0, 1) if slot not in taken), None)
    if free is None:
        return None
    row = connection.execute(_CLAIM, (free, _now())).fetchone()
    if row is None:
        return None
    job = _job(row)
    connection.execute(
        "UPDATE fair_clock SET virtual_time = max(virtual_time, ?), served_until = max(served_until, ?)",
        (job.start_tag, job.finish_tag),
    )
    return job


def _complete(
    connection: sqlite3.Connection, job_id: JobId, gpu_s: float, model: str, unused_prompt: str
) -> Job | None:
    job = _move(connection, job_id, JobState.RENDERED, "gpu_s = ?, unused_prompt = ?", (gpu_s, unused_prompt))
    if job is not None and job.started_at is not None:
        request, origin = job.request, job.origin
        pixels = request.width * request.height * request.num_images
        wait_s = (job.started_at - job.created_at).total_seconds()
        connection.execute(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(job_id, origin.user_id, origin.guild_id, origin.channel_id),
                *(request.num_images, pixels, request.steps, gpu_s, max(0.0, wait_s), model, _now()),
            ),
        )
    return job


def _cancel(
    connection: sqlite3.Connection, job_id: JobId, also: str, values: tuple[object, ...]
) -> Job | None:
    job = _move(connection, job_id, JobState.CANCELLED, also, values)
    if job is not None:
        later = (job.origin.user_id, job.finish_tag)
        first_start, virtual_time = connection.execute(
            f"SELECT (SELECT min(start_tag) FROM job WHERE {_LATER}), virtual_time FROM fair_clock", later
        ).fetchone()
        if first_start is not None:
            up = policy.moves_up(job.request.cost, first_start, virtual_time)
            connection.execute(
                f"UPDATE job SET start_tag = start_tag - ?, finish_tag = finish_tag - ? WHERE {_LATER}",
                (up, up, *later),
            )
    return job


def _move(
    connection: sqlite3.Connection, job_id: JobId, state: JobState, also: str, values: tuple[object, ...]
) -> Job | None:
    """Take a legal step; None if the job stands where no such step begins."""
    before = [origin.value for origin, targets in TRANSITIONS.items() if state in targets]
    marks = ", ".join("?" * len(before))
    row = connection.execute(
        f"UPDATE job SET state = ?, slot = NULL, {also} WHERE id = ? AND state IN ({marks}) RETURNING *",
        (state.value, *values, job_id, *before),
    ).fetchone()
    return _job(row) if row else None


def _job(row: sqlite3.Row) -> Job:
    value = dict(row)
    for name in ("guidance_scale", "lora_scale"):
        value[name] = float(value[name])  # RETURNING gives a whole REAL as an int
    return Job(
        id=JobId(value["id"]),
        state=JobState(value["state"]),
        request=ImageRequest(**{name: value[name] for name in ImageRequest.__slots__}),
        origin=Origin(**{name: value[name] for name in Origin.__slots__}),
        message_id=value["message_id"],
        attempts=value["attempts"],
        start_tag=value["start_tag"],
        finish_tag=value["finish_tag"],
        created_at=_moment(value["created_at"]) or datetime.now(UTC),
        started_at=_moment(value["started_at"]),
        ended_at=_moment(value["ended_at"]),
        gpu_s=value["gpu_s"],
        unused_prompt=value["unused_prompt"],
        error_code=value["error_code"],
        deleted=value["deleted_at"] is not None,
    )


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
