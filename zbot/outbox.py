"""Tells every outcome exactly once: drawn but unposted jobs, failures and cancellations, with their retry schedule."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from zbot.errors import StoreUnavailable, Undeliverable
from zbot.job import Job, JobId, JobState
from zbot.store import Store

log = logging.getLogger(__name__)

AT_ONCE = 4  # uploads side by side: one slow upload holds up nobody else
LONGEST_PAUSE_S = 60.0
GIVE_UP_AFTER_S = 24 * 3600.0


class Messenger(Protocol):
    """Whoever can show a job's outcome to people. Every call may be repeated and must then show nothing twice."""

    async def deliver(self, job: Job, pictures: Sequence[Path]) -> int:
        """Show the pictures of a rendered job; return the id of the message that holds them.

        Raises:
            Undeliverable: it can never be shown.
        """
        ...

    async def tell(self, job: Job) -> int:
        """Show that a job failed or was cancelled; return the id of the message that says so.

        Raises:
            Undeliverable: it can never be shown.
        """
        ...


class Outbox:
    """Works through the jobs whose outcome the channel does not show yet; the table says which they are."""

    def __init__(
        self,
        *,
        store: Store,
        messenger: Messenger,
        images_dir: Path,
        before_outcome: Callable[[JobId], Awaitable[None]],
    ) -> None:
        self._store = store
        self._messenger = messenger
        self._images_dir = images_dir
        self._before_outcome = before_outcome
        self._bell = asyncio.Event()
        self._tries: dict[JobId, int] = {}
        self._due: dict[JobId, float] = {}  # loop time of the next try
        self._under_way: dict[JobId, asyncio.Task[None]] = {}
        self._unanswered: Counter[JobId] = Counter()  # the same interaction may come twice at once
        self._held_back: set[JobId] = set()  # due, but not answered yet

    def ring(self) -> None:
        """Say that there may be something to tell."""
        self._bell.set()

    @contextmanager
    def first_answer(self, job_id: JobId) -> Generator[None]:
        """Hold a job's outcome back for the time of a block, which gives the job its first answer."""
        self._unanswered[job_id] += 1
        try:
            yield
        finally:
            self._unanswered[job_id] -= 1
            if not self._unanswered[job_id]:
                del self._unanswered[job_id]
            if job_id in self._held_back:
                self._held_back.discard(job_id)
                self.ring()

    async def run(self) -> None:
        """Tell outcomes until cancelled."""
        try:
            while True:
                self._bell.clear()
                pause_s = await self._start_due()
                try:
                    async with asyncio.timeout(pause_s):
                        await self._bell.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._under_way.values():
                task.cancel()

    async def flush(self, within_s: float) -> None:
        """Let what is under way end, and start what is due, for so long at most; `run` must be running."""
        try:
            async with asyncio.timeout(within_s):
                self.ring()
                await asyncio.sleep(0)
                while waiting := [job for job in await self._store.outbox() if job.id not in self._tries]:
                    log.info("%d outcomes are still to be told", len(waiting))
                    await asyncio.wait(
                        self._under_way.values() or {asyncio.ensure_future(asyncio.sleep(0.1))}
                    )
        except (TimeoutError, StoreUnavailable):
            pass

    async def _start_due(self) -> float | None:
        """Start what is due; return the seconds until something else is, None if nothing waits."""
        # What changes while the table is read may stand in the answer as it was before.
        held = self._under_way.keys() | self._unanswered.keys()
        try:
            jobs = await self._store.outbox()
        except StoreUnavailable as error:
            log.error("the outbox cannot be read: %s", error)
            return 5.0
        now = asyncio.get_running_loop().time()
        pause_s: float | None = None
        for job in jobs:
            if job.id in self._under_way:
                continue
            if job.id in self._unanswered:
                self._held_back.add(job.id)
                continue
            if job.id in held:
                self.ring()  # its answer, or its last try, ended while the table was read: look again
                continue
            wait_s = self._due.get(job.id, now) - now
            if wait_s <= 0 and len(self._under_way) < AT_ONCE:
                task = self._under_way[job.id] = asyncio.create_task(
                    self._tell(job), name=f"outcome-{job.id}"
                )
                task.add_done_callback(lambda _, job_id=job.id: self._ended(job_id))
            elif wait_s > 0:
                pause_s = min(wait_s, pause_s or wait_s)
        return pause_s

    def _ended(self, job_id: JobId) -> None:
        del self._under_way[job_id]
        self.ring()

    async def _tell(self, job: Job) -> None:
        """Show one outcome and note it; on failure plan the next try."""
        try:
            await self._before_outcome(job.id)
            if job.state is JobState.RENDERED:
                pictures = [self._images_dir / name for name in job.file_names]
                await self._store.delivered(job.id, await self._messenger.deliver(job, pictures))
            else:
                await self._store.told(job.id, await self._messenger.tell(job))
            self._forget(job.id)
        except Undeliverable as error:
            log.warning("the outcome of job %d cannot be shown: %s", job.id, error)
            await self._give_up(job)
        except Exception as error:
            if (datetime.now(UTC) - job.created_at).total_seconds() > GIVE_UP_AFTER_S:
                log.error("the outcome of job %d could not be shown for a day: %r", job.id, error)
                await self._give_up(job)
            else:
                self._try_later(job, error)

    def _try_later(self, job: Job, error: Exception) -> None:
        tries = self._tries[job.id] = self._tries.get(job.id, 0) + 1
        pause_s = min(LONGEST_PAUSE_S, 0.5 * 2 ** min(tries, 10))  # a day of tries would overflow a float
        log.warning("the outcome of job %d is told again in %.0f s: %r", job.id, pause_s, error)
        self._due[job.id] = asyncio.get_running_loop().time() + pause_s

    async def _give_up(self, job: Job) -> None:
        try:
            if job.state is JobState.RENDERED:
                await self._store.undeliverable(job.id)
            else:
                await self._store.told(job.id, job.message_id)
            self._forget(job.id)
        except StoreUnavailable as error:
            self._try_later(job, error)

    def _forget(self, job_id: JobId) -> None:
        self._tries.pop(job_id, None)
        self._due.pop(job_id, None)
