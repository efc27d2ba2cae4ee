"""Keeps the answers of waiting and running jobs current, beside the generator and within a budget of edits.

Progress is the one thing that may be dropped: only the newest status of a job counts, what runs goes before what
waits, and an outcome is never overtaken (`close`).
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from zbot.engine import Step
from zbot.errors import StoreUnavailable
from zbot.job import Job, JobId
from zbot.queue import Place, Queue

log = logging.getLogger(__name__)

# Third parties measured 5 edits per 2 s for one interaction and 30 per 60 s for one guild
# (discord/discord-api-docs#2701); the outcome itself must always find room.
STEP_PAUSE_S = 1.0  # between two edits of a running job's answer
FIRST_STEP_AFTER_S = 0.6  # a job that is drawn sooner shows no steps
PLACE_PAUSE_S = 5.0  # between two edits of a waiting job's answer
LOOK_PAUSE_S = 1.0  # between two readings of the line: hundreds may join it within a second
EDITS = 20
EDITS_KEPT = 6  # of those, for jobs whose drawing has just begun: nobody shall read "next in line" meanwhile
STEADY_EDITS = 3  # as many in the last minute slow nothing down; twice as many double the pause between steps
EDITS_WITHIN_S = 60.0
EDIT_WITHIN_S = 10.0
CLOSED_KEPT = 1_000
ETA_TOLERANCE = 0.3  # an ETA is shown as a moment that counts down by itself, so small changes need no edit


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How far the picture on the card is."""

    picture: int  # 1..num_images
    step: Step


class ProgressMessenger(Protocol):
    """Whoever can show how far a job is."""

    async def update(self, job: Job, status: Place | Drawing) -> None:
        """Show a job's place in line or its progress; failing is harmless."""
        ...


@dataclass(slots=True, kw_only=True)
class _Answer:
    """One job's answer in the channel: what it should show, and what it shows."""

    job: Job
    wanted: Place | Drawing | None = None
    shown: Place | Drawing | None = None
    shown_at: float = 0.0
    eta_at: float | None = None  # the moment the shown ETA names


class Herald:
    """Edits answers in the background; see `run`."""

    def __init__(self, queue: Queue, messenger: ProgressMessenger) -> None:
        self._queue = queue
        self._messenger = messenger
        self._answers: dict[JobId, _Answer] = {}
        self._closed: dict[JobId, None] = {}  # the last ones, so that a late word about them is not heard
        self._bell = asyncio.Event()
        self._line_changed = False
        self._next_look = 0.0  # monotonic
        self._edit: tuple[JobId, asyncio.Task[None]] | None = None
        self._edits: dict[int, deque[float]] = {}  # guild -> when its last edits were sent

    # --- heard from the others; all of these return at once ---

    def line_changed(self) -> None:
        """Hear that places have changed."""
        self._line_changed = True
        self._bell.set()

    def stepped(self, job: Job, picture: int, step: Step) -> None:
        """Hear of one step of picture 1..num_images."""
        # Without a known message the first answer is still on its way: there is nothing to edit yet.
        answer = self._answers.get(job.id)
        if answer is None and job.message_id is not None and job.id not in self._closed:
            answer = self._answers[job.id] = _Answer(job=job)
        if answer is not None:
            if not isinstance(answer.wanted, Drawing):
                # What is drawn at once needs no edit of its own: its picture comes as soon.
                answer.shown_at = max(answer.shown_at, time.monotonic() - STEP_PAUSE_S + FIRST_STEP_AFTER_S)
            answer.wanted = Drawing(picture=picture, step=step)
            self._bell.set()

    def answered(self, job: Job, place: Place) -> None:
        """Hear that the first answer already shows a place."""
        if job.id not in self._closed:
            answer = self._answers.setdefault(job.id, _Answer(job=job))
            self._note_shown(answer, place)

    async def close(self, job_id: JobId) -> None:
        """Send nothing more about a job; returns when an edit under way has ended."""
        self._closed[job_id] = None
        if len(self._closed) > CLOSED_KEPT:
            del self._closed[next(iter(self._closed))]
        self._answers.pop(job_id, None)
        if self._edit and self._edit[0] == job_id:
            await asyncio.wait({self._edit[1]})

    # --- the task ---

    async def run(self) -> None:
        """Edit answers until cancelled."""
        while True:
            self._bell.clear()
            look_pause_s = await self._look_at_line()
            answer, pause_s = self._next_due()
            pause_s = min((pause for pause in (pause_s, look_pause_s) if pause is not None), default=None)
            if answer is not None:
                await self._show(answer)
                continue
            try:
                async with asyncio.timeout(pause_s):
                    await self._bell.wait()
            except TimeoutError:
                pass

    async def _look_at_line(self) -> float | None:
        """Take in the places if they have changed; return the seconds to wait if it is too soon for that."""
        now = time.monotonic()
        if not self._line_changed:
            return None
        if now < self._next_look:
            return self._next_look - now
        self._line_changed, self._next_look = False, now + LOOK_PAUSE_S
        try:
            line = await self._queue.line()
        except StoreUnavailable:
            return None
        for job, place in line.waiting:
            if job.message_id is not None and job.id not in self._closed:  # it may have ended meanwhile
                self._answers.setdefault(job.id, _Answer(job=job))
            if job.id in self._answers:
                self._answers[job.id].wanted = place
        return None

    def _next_due(self) -> tuple[_Answer | None, float | None]:
        """Return the answer most worth an edit now, or the seconds until one may be."""
        now = time.monotonic()
        pause_s: float | None = None
        for answer in sorted(self._answers.values(), key=_urgency):
            if answer.wanted is None or not self._is_news(answer, now):
                continue
            wait_s = max(
                answer.shown_at + self._spacing_s(answer, now) - now, self._budget_wait_s(answer, now)
            )
            if wait_s <= 0:
                return answer, None
            pause_s = min(wait_s, pause_s or wait_s)
        return None, pause_s

    def _is_news(self, answer: _Answer, now: float) -> bool:
        wanted, shown = answer.wanted, answer.shown
        if isinstance(wanted, Drawing) or not isinstance(shown, Place) or wanted is None:
            return wanted != shown
        if wanted.place != shown.place or (wanted.eta_s is None) != (shown.eta_s is None):
            return True
        if wanted.eta_s is None or answer.eta_at is None:
            return False
        drift_s = abs(now + wanted.eta_s - answer.eta_at)
        return drift_s > max(10.0, ETA_TOLERANCE * wanted.eta_s)

    def _spacing_s(self, answer: _Answer, now: float) -> float:
        """Return the pause that an answer keeps between two edits: longer steps where much was edited lately."""
        if isinstance(answer.wanted, Place):
            return PLACE_PAUSE_S
        if not isinstance(answer.shown, Drawing):
            return STEP_PAUSE_S
        lately = sum(sent > now - EDITS_WITHIN_S for sent in self._sent(answer.job))
        return STEP_PAUSE_S * max(1.0, lately / STEADY_EDITS)

    def _budget_wait_s(self, answer: _Answer, now: float) -> float:
        begins = isinstance(answer.wanted, Drawing) and not isinstance(answer.shown, Drawing)
        sent, allowed = self._sent(answer.job), EDITS if begins else EDITS - EDITS_KEPT
        return sent[-allowed] + EDITS_WITHIN_S - now if len(sent) >= allowed else 0.0

    def _sent(self, job: Job) -> deque[float]:
        """Return when the last edits were sent to the job's server."""
        return self._edits.setdefault(job.origin.guild_id or job.origin.channel_id, deque(maxlen=EDITS))

    async def _show(self, answer: _Answer) -> None:
        job, status = answer.job, answer.wanted
        assert status is not None
        self._sent(job).append(time.monotonic())
        self._note_shown(answer, status)
        task = asyncio.create_task(self._update(job, status))
        self._edit = (job.id, task)
        try:
            await asyncio.wait({task})
        finally:
            self._edit = None
            task.cancel()

    async def _update(self, job: Job, status: Place | Drawing) -> None:
        try:
            async with asyncio.timeout(EDIT_WITHIN_S):
                await self._messenger.update(job, status)
        except Exception as error:
            log.debug("the progress of job %d could not be shown: %r", job.id, error)

    def _note_shown(self, answer: _Answer, status: Place | Drawing) -> None:
        answer.shown, answer.shown_at = status, time.monotonic()
        if isinstance(status, Place):
            answer.eta_at = None if status.eta_s is None else answer.shown_at + status.eta_s


def _urgency(answer: _Answer) -> tuple[bool, int]:
    """What runs before what waits, and of those the next ones first."""
    return (isinstance(answer.wanted, Place), answer.wanted.place if isinstance(answer.wanted, Place) else 0)
