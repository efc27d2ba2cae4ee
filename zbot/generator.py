"""The single GPU generator task: claims a job, has the engine draw it, saves the pictures, completes the job.

Two jobs may be in hand at once: the card denoises one while the pictures of the one before are decoded and saved. The
card never waits for Discord: progress goes to a callback, pictures to the outbox.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from zbot import images, policy
from zbot.engine import Drawn, Engine, LoadProgress, ModelCard, Step, overlap
from zbot.errors import ConfigError, EngineDead, GenerationError, StoreUnavailable, WeightsError
from zbot.job import Job, JobId
from zbot.queue import Queue
from zbot.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

FINISH_WITHIN_S = 8.0  # how long a stop lets the pictures in hand go on
PUT_BACK_WITHIN_S = 4.0  # and how long it waits for the database to take the others back
RETRY_S = (1.0, 5.0, 15.0, 30.0)  # waits between tries to load, to save, to write; the last one repeats
DEATHS_TO_SLOW_DOWN = 3
DEATHS_WITHIN_S = 600.0
SLOW_DOWN_S = 60.0


class EngineState(StrEnum):
    """What the card is doing, for /status and the health file."""

    LOADING = "loading"
    READY = "ready"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the generator can say of itself."""

    state: EngineState
    card: ModelCard | None = None
    progress: LoadProgress | None = None
    problem: str = ""


class Watcher(Protocol):
    """Whoever shows people how far their pictures are; called on the event loop, must return at once."""

    def stepped(self, job: Job, picture: int, step: Step) -> None:
        """Hear of one step of picture 1..num_images."""
        ...


class Generator:
    """Runs as one asyncio task; see `run` and `stop`."""

    def __init__(
        self,
        *,
        store: Store,
        queue: Queue,
        engine: Engine,
        model: str,
        images_dir: Path,
        watcher: Watcher,
        rendered: Callable[[], None],
    ) -> None:
        self._store = store
        self._queue = queue
        self._engine = engine
        self._model = model
        self._images_dir = images_dir
        self._watcher = watcher
        self._rendered = rendered
        self._in_hand: set[asyncio.Task[None]] = set()
        self._drawing: dict[JobId, asyncio.Task[list[Drawn]]] = {}  # what may still be stopped: not saved yet
        self._suspects: set[JobId] = (
            set()
        )  # in hand when the engine died: drawn alone, so that the blame is sure
        self._deaths: deque[float] = deque(maxlen=DEATHS_TO_SLOW_DOWN)
        self._loaded = False
        self._lives = 0  # engines loaded so far
        self._stopping = asyncio.Event()
        self.status = Status(state=EngineState.LOADING)

    async def run(self) -> None:
        """Draw until `stop` is called; what is then in hand is finished, or put back to its place in the line."""
        try:
            while not self._stopping.is_set():
                if await self._until_stopped(self._load()):
                    await self._until_stopped(self._draw_next())
            await self._settle(FINISH_WITHIN_S)
        finally:
            for drawing in self._drawing.values():
                drawing.cancel()
            await self._settle(PUT_BACK_WITHIN_S)
            for task in self._in_hand:
                task.cancel()  # the database does not answer: the next start puts the job back
            await self._engine.close()

    def stop(self) -> None:
        """Claim nothing more and let `run` return."""
        self._stopping.set()

    def stop_drawing(self, job_id: JobId) -> None:
        """Stop a job whose row says cancelled already; harmless if it is not being drawn."""
        if drawing := self._drawing.get(job_id):
            drawing.cancel()

    async def _settle(self, within_s: float | None) -> None:
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=within_s)

    async def _until_stopped(self, work: Awaitable[T]) -> T | None:
        """Await work; None if the generator is stopped first (the work is then cancelled)."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    # --- the engine ---

    async def _load(self) -> bool:
        """Have a living engine, trying until there is one; people go on being answered meanwhile."""
        tries = 0
        while not self._loaded:
            if self._dies_often():
                await self._slow_down()
            self.status = Status(state=EngineState.LOADING, problem=self.status.problem)
            try:
                card = await self._engine.load(self._show_progress)
                self.status = Status(state=EngineState.READY, card=card)
                self._loaded = True
                self._lives += 1
                log.info("the engine is ready: %s in %s on %s", card.model, card.dtype, card.device)
            except (WeightsError, GenerationError, ConfigError, OSError) as error:
                if str(error) != self.status.problem:
                    log.error("the engine is not available: %s", error)
                self.status = Status(state=EngineState.UNAVAILABLE, problem=str(error))
                await asyncio.sleep(_pause_s(tries))
                tries += 1
        return True

    async def _slow_down(self) -> None:
        """Take no job for a while: something is wrong that another start will not mend."""
        problem = f"the engine died {DEATHS_TO_SLOW_DOWN} times within {DEATHS_WITHIN_S / 60:.0f} minutes"
        log.error("%s; the next try is in %.0f s", problem, SLOW_DOWN_S)
        self.status = Status(state=EngineState.UNAVAILABLE, problem=problem)
        await asyncio.sleep(SLOW_DOWN_S)

    def _dies_often(self) -> bool:
        """Say whether to wait before the next load; true once for every death too many."""
        often = (
            len(self._deaths) == DEATHS_TO_SLOW_DOWN and time.monotonic() - self._deaths[0] < DEATHS_WITHIN_S
        )
        if often:
            self._deaths.popleft()
        return often

    def _show_progress(self, progress: LoadProgress) -> None:
        # Told at the first try; when loading fails again and again, its error says enough.
        level = logging.DEBUG if self.status.problem else logging.INFO
        log.log(
            level, "loading %s: %d of %d files, %.1f s so far", progress.stage, progress.done, progress.total,
            progress.seconds,
        )  # fmt: skip
        self.status = Status(state=EngineState.LOADING, progress=progress, problem=self.status.problem)

    def _engine_died(self, life: int) -> None:
        """Note the death of one engine, however many jobs hear of it, and however late."""
        self._suspects.update(self._drawing)
        if self._loaded and life == self._lives:
            self._loaded = False
            self._deaths.append(time.monotonic())

    # --- one job ---

    async def _draw_next(self) -> None:
        """Take the next job and return once the card is free for another, or the engine is gone."""
        try:
            job = await self._queue.claim()
        except StoreUnavailable as error:
            log.warning("no job can be claimed: %s", error)
            await asyncio.sleep(RETRY_S[0])
            return
        alone = job.id in self._suspects
        if alone:
            self._suspects.discard(job.id)
            await self._settle(None)
        card_free = asyncio.Event()
        task = asyncio.create_task(self._process(job, card_free), name=f"job-{job.id}")
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)
        task.add_done_callback(lambda _: card_free.set())
        await (asyncio.wait({task}) if alone else card_free.wait())

    async def _process(self, job: Job, card_free: asyncio.Event) -> None:
        """Bring one claimed job to its next state, whatever happens."""
        gpu_s: float | None = None
        life = self._lives
        drawing = self._drawing[job.id] = asyncio.create_task(self._draw(job, card_free))
        try:
            drawn = await drawing
            del self._drawing[job.id]
            gpu_s = sum(picture.gpu_s for picture in drawn)
            if cards := [picture.card for picture in drawn if picture.card is not None]:
                self.status = replace(self.status, card=cards[-1])
            await self._save(job, drawn, gpu_s)
        except asyncio.CancelledError:
            if not drawing.cancelled():
                raise
            # Stopped by a person (the row says cancelled, and this changes nothing) or because the bot ends.
            await self._insist(lambda: self._store.put_back(job.id, spend_attempt=False))
        except EngineDead as error:
            self._engine_died(life)
            await self._after_death(job, error)
        except GenerationError as error:
            await self._fail(job, error.code, str(error))
        except Exception:
            log.exception("job %d failed for a reason nobody thought of", job.id)
            await self._fail(job, "internal", "see the log")
        finally:
            drawing.cancel()
            self._drawing.pop(job.id, None)
            self._queue.left_card(job, gpu_s=gpu_s)
            self._rendered()

    async def _draw(self, job: Job, card_free: asyncio.Event) -> list[Drawn]:
        """Draw every picture of a job, each as soon as the card is free of the one before."""
        drawings: list[asyncio.Task[Drawn]] = []
        try:
            for number, picture in enumerate(job.request.pictures(), start=1):
                drawing = overlap.start(self._engine, picture, partial(self._on_step, job, number))
                drawings.append(drawing.task)
                await drawing.card_free.wait()
                if drawing.task.done() and drawing.task.exception():
                    break
            card_free.set()
            await asyncio.wait(drawings)
            # Of several that the engine took with it, the one that was on the card speaks for the job.
            errors = [error for drawing in drawings if (error := drawing.exception())]
            for error in sorted(
                errors, key=lambda error: isinstance(error, EngineDead) and not error.on_card
            ):
                raise error
            return [drawing.result() for drawing in drawings]
        finally:
            for drawing in drawings:
                drawing.cancel()
            if drawings:
                await asyncio.wait(drawings)

    def _on_step(self, job: Job, number: int, step: Step) -> None:
        self._queue.drawn_so_far(job, (number - 1 + step.number / step.total) / job.request.num_images)
        self._watcher.stepped(job, number, step)

    async def _save(self, job: Job, drawn: list[Drawn], gpu_s: float) -> None:
        """Put the pictures on disk, then the job to `rendered` with its usage."""
        for name, picture in zip(job.file_names, drawn, strict=True):
            path = self._images_dir / name
            await self._insist(
                lambda path=path, png=picture.png: asyncio.to_thread(images.write_atomic, path, png)
            )
        unused = drawn[0].unused_prompt
        completed = await self._insist(
            lambda: self._store.complete(job.id, gpu_s=gpu_s, model=self._model, unused_prompt=unused)
        )
        if completed is None:  # cancelled while it was being saved
            await self._discard(job)

    async def _discard(self, job: Job) -> None:
        for name in job.file_names:
            try:
                await asyncio.to_thread((self._images_dir / name).unlink, missing_ok=True)
            except OSError as error:
                log.warning("%s stays until the next start: %s", name, error)

    async def _after_death(self, job: Job, error: EngineDead) -> None:
        """Charge the death to the job whose picture was on the card, and to no other."""
        if error.on_card and not policy.is_retried(job.attempts + 1):
            await self._fail(job, error.code, str(error))
        else:
            log.warning("job %d is drawn again: %s", job.id, error)
            await self._insist(lambda: self._store.put_back(job.id, spend_attempt=error.on_card))

    async def _fail(self, job: Job, code: str, reason: str) -> None:
        log.error("job %d failed: %s", job.id, reason)
        await self._discard(job)
        await self._insist(lambda: self._store.fail(job.id, code))

    async def _insist(self, save: Callable[[], Awaitable[T]]) -> T:
        """Save, waiting for the disk or the database for as long as it takes: what is drawn is not lost."""
        for tries in itertools.count():
            try:
                result = await save()
                if tries:
                    self.status = replace(self.status, problem="")
                return result
            except (StoreUnavailable, OSError) as error:
                log.error("nothing can be saved (%s); trying again in %.0f s", error, _pause_s(tries))
                self.status = replace(self.status, problem=f"nothing can be saved: {error}")
                await asyncio.sleep(_pause_s(tries))
        raise AssertionError("unreachable")


def _pause_s(tries: int) -> float:
    return RETRY_S[min(tries, len(RETRY_S) - 1)]
