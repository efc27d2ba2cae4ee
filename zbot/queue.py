"""Submit, cancel, place in line and recovery: the table is the line, the `asyncio` part is only the bell."""

import asyncio
import logging
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from zbot import policy
from zbot.errors import JobNotFound, NotAllowed, StoreUnavailable
from zbot.job import Job, JobId, JobState, Origin
from zbot.request import ImageRequest
from zbot.store import Accepted, Store

log = logging.getLogger(__name__)

ACCEPT_WITHIN_S = 1.5  # Discord waits 3 s for the first answer; the rest of the time belongs to the network
WITHDRAW_AGAIN_S = 1.0
SPEED_SAMPLES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a waiting job stands: 1 is next."""

    place: int
    eta_s: float | None  # until its last picture is drawn; None before the first picture was ever timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The whole line at one moment."""

    running: list[Job]
    waiting: list[tuple[Job, Place]]  # in the order they will be drawn


class Speed:
    """This machine's measured speed, as card seconds per pixel-step over the last jobs."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SPEED_SAMPLES)

    def learn(self, samples: Iterable[float]) -> None:
        """Take in samples, oldest first."""
        self._samples.extend(samples)

    def seconds(self, cost: float) -> float | None:
        """Return how long `cost` pixel-steps take; None before anything was measured."""
        return statistics.median(self._samples) * cost if self._samples else None


class Queue:
    """The way in for every request, and the way out for the generator."""

    def __init__(self, store: Store, limits: policy.Limits) -> None:
        self._store = store
        self._limits = limits
        self._bell = asyncio.Event()
        self._running: dict[JobId, tuple[Job, float]] = {}  # with the part that is drawn, 0..1
        self._stop_drawing: Callable[[JobId], None] = lambda job_id: None
        self._line_changed: Callable[[], None] = lambda: None
        self._withdrawals: set[asyncio.Task[None]] = set()
        self.speed = Speed()

    def connect(self, *, stop_drawing: Callable[[JobId], None], line_changed: Callable[[], None]) -> None:
        """Name who stops a running job and who wants to hear that places have changed."""
        self._stop_drawing = stop_drawing
        self._line_changed = line_changed

    # --- for the people ---

    async def submit(self, request: ImageRequest, origin: Origin) -> tuple[Accepted, Place]:
        """Accept a request: its row is committed when this returns.

        Raises:
            QuotaExceeded, QueueFull: nothing was written.
            StoreUnavailable: not within `ACCEPT_WITHIN_S`; it will not be drawn, whatever the disk does later.
        """
        withdrawn = threading.Event()
        insertion = self._store.accept(
            request,
            origin,
            admit=partial(policy.admit, limits=self._limits),
            tags=policy.tags,
            withdrawn=withdrawn,
        )
        try:
            async with asyncio.timeout(ACCEPT_WITHIN_S):
                accepted = await asyncio.shield(insertion)
        except (TimeoutError, asyncio.CancelledError) as error:
            withdrawn.set()
            insertion.add_done_callback(self._withdraw_late)
            if isinstance(error, TimeoutError):
                raise StoreUnavailable(f"no commit within {ACCEPT_WITHIN_S} s") from error
            raise
        self.ring()
        cost = accepted.cost_before + self._left_on_card() + accepted.job.request.cost
        return accepted, Place(place=accepted.jobs_before + 1, eta_s=self.speed.seconds(cost))

    def _withdraw_late(self, insertion: asyncio.Future[Accepted]) -> None:
        """Take back a job whose commit came after the person was told that it was not accepted."""
        if insertion.cancelled() or insertion.exception() is not None:
            return
        accepted = insertion.result()
        if not accepted.is_new:  # the first copy of this interaction was accepted, and the person was told so
            return
        task = asyncio.create_task(self._withdraw(accepted.job.id))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)

    async def _withdraw(self, job_id: JobId) -> None:
        while True:
            try:
                await self._store.withdraw(job_id)
                break
            except StoreUnavailable as error:
                log.warning("job %d cannot be withdrawn yet: %s", job_id, error)
                await asyncio.sleep(WITHDRAW_AGAIN_S)
        self._stop_drawing(job_id)
        self._line_changed()

    async def cancel(self, job_id: JobId, *, user_id: int, is_moderator: bool) -> Job:
        """Take back a waiting or running job of one's own, or of anybody as a moderator.

        Raises:
            JobNotFound: no such job, or it is finished.
            NotAllowed: somebody else's.
        """
        job = await self._store.job(job_id)
        require_owner(job, user_id=user_id, is_moderator=is_moderator)
        # The row first, then the card: whichever of "cancelled" and "rendered" is committed first is what happened.
        cancelled = await self._store.cancel(job_id)
        if cancelled is None:
            raise JobNotFound(code="job_finished", job=job_id)
        if job.state is JobState.RUNNING or cancelled.started_at is not None:
            self._stop_drawing(job_id)
        self._line_changed()
        return cancelled

    async def line(self) -> Line:
        """Return who is on the card and who waits, with places and times."""
        jobs = await self._store.line()
        running = [job for job in jobs if job.state is JobState.RUNNING]
        waiting: list[tuple[Job, Place]] = []
        cost = self._left_on_card()
        for job in jobs:
            if job.state is JobState.QUEUED:
                cost += job.request.cost
                waiting.append((job, Place(place=len(waiting) + 1, eta_s=self.speed.seconds(cost))))
        return Line(running=running, waiting=waiting)

    def part_drawn(self, job_id: JobId) -> float:
        """Return which part of a running job is drawn, 0..1."""
        return self._running[job_id][1] if job_id in self._running else 0.0

    def _left_on_card(self) -> float:
        return sum(job.request.cost * (1 - drawn) for job, drawn in self._running.values())

    # --- for the generator ---

    async def recover(self, model: str) -> None:
        """Return what ran at the last end to the line and learn the speed again; call once, before `claim`."""
        for job in await self._store.recover():
            log.info("job %d ran when the bot ended and is drawn again", job.id)
        self.speed.learn(reversed(await self._store.speeds(model, SPEED_SAMPLES)))
        self.ring()

    async def claim(self) -> Job:
        """Wait for the next job and take it.

        Raises:
            StoreUnavailable: the database does not answer; try again later.
        """
        while True:
            self._bell.clear()
            job = await self._store.claim()
            if job is not None:
                self._running[job.id] = (job, 0.0)
                self._line_changed()
                return job
            await self._bell.wait()

    def drawn_so_far(self, job: Job, part: float) -> None:
        """Note which part of a running job is drawn, 0..1."""
        if job.id in self._running:
            self._running[job.id] = (job, part)

    def left_card(self, job: Job, *, gpu_s: float | None = None) -> None:
        """Note that a job left the card, and how long it took if it was drawn to its end."""
        self._running.pop(job.id, None)
        if gpu_s is not None:
            self.speed.learn([gpu_s / job.request.cost])
        self.ring()

    def ring(self) -> None:
        """Wake whoever waits for a job, and say that places have changed."""
        self._bell.set()
        self._line_changed()


def require_owner(job: Job, *, user_id: int, is_moderator: bool) -> None:
    """Let pass the requester of a job and moderators.

    Raises:
        NotAllowed: anybody else.
    """
    if job.origin.user_id != user_id and not is_moderator:
        raise NotAllowed(code="not_your_job")
