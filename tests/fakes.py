"""The seams' other ends, for tests: an engine and a messenger that do what a test says, and values to feed them."""

import asyncio
import io
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from zbot import policy
from zbot.engine import Drawn, LoadProgress, ModelCard, OnLoad, OnStep, Step
from zbot.errors import EngineDead
from zbot.job import Job, JobId, JobState, Origin
from zbot.policy import Limits
from zbot.progress import Drawing
from zbot.queue import Place
from zbot.request import ImageRequest
from zbot.store import Accepted, Store

MODEL = "fake"
PATIENCE_S = 30.0  # how long a test waits for what must happen; a claim that fails fails by this
_interactions = itertools.count(1_000)


def a_request(**fields: Any) -> ImageRequest:
    """Return a small valid request."""
    return ImageRequest(**({"prompt": "a fox", "seed": 7, "width": 64, "height": 64, "steps": 4} | fields))


def an_origin(user_id: int = 1, **fields: Any) -> Origin:
    """Return where a request came from; every one has its own interaction."""
    interaction_id = fields.pop("interaction_id", None) or next(_interactions)
    return Origin(
        **(
            {
                "interaction_id": interaction_id,
                "interaction_token": f"token-of-{interaction_id}",
                "application_id": 42,
                "user_id": user_id,
                "guild_id": 7,
                "channel_id": 8,
                "locale": "en-US",
                "attachment_limit_bytes": 10 * 2**20,
            }
            | fields
        )
    )


def a_png(seed: int) -> bytes:
    """Return a small valid picture whose colour is its seed."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, seed // 256 % 256, seed // 65536 % 256)).save(buffer, "PNG")
    return buffer.getvalue()


async def eventually(check: Callable[[], Any | Awaitable[Any]]) -> Any:
    """Return the first true value of a check, asked again and again; TimeoutError if it never comes."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            value = check()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            await asyncio.sleep(0)


async def spin(turns: int = 50) -> None:
    """Let everything that is ready to run on the event loop run."""
    for _ in range(turns):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(work: Awaitable[Any]) -> AsyncIterator[asyncio.Future[Any]]:
    """Run work beside a block and cancel it at the block's end; what it raised by then is raised."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        if task.done() and not task.cancelled():
            task.result()
        task.cancel()
        await asyncio.wait({task})


class Clock:
    """The event loop's time, moved on by hand: pauses pass at once, and not before the test says so."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._skipped_s = 0.0
        self._real = loop.time
        loop.time = self.monotonic  # type: ignore[method-assign]

    def monotonic(self) -> float:
        """Return the loop's time."""
        return self._real() + self._skipped_s

    async def advance(self, seconds: float) -> None:
        """Let so much time pass for everything that waits by now."""
        await spin()
        self._skipped_s += seconds
        await spin()


@dataclass(kw_only=True, eq=False)
class Picture:
    """One `draw` under way; the test says what becomes of it."""

    request: ImageRequest
    on_step: OnStep
    outcome: "asyncio.Future[Drawn]"
    steps_done: int = 0
    was_cancelled: bool = False

    @property
    def on_card(self) -> bool:
        """Whether the card still works on it: not all steps are done and nothing ended it."""
        return not self.outcome.done() and self.steps_done < self.request.steps

    def step(self, count: int = 1) -> None:
        """Report steps."""
        for _ in range(count):
            self.steps_done += 1
            self.on_step(Step(number=self.steps_done, total=self.request.steps))

    def last_step(self) -> None:
        """Report every step that is left: the card is free."""
        self.step(self.request.steps - self.steps_done)

    def finish(self, *, gpu_s: float = 0.5, unused_prompt: str = "") -> None:
        """Report what steps are left and give the picture back."""
        self.last_step()
        seed = self.request.seed
        self.outcome.set_result(Drawn(png=a_png(seed), seed=seed, gpu_s=gpu_s, unused_prompt=unused_prompt))

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        self.outcome.set_exception(error)


class FakeEngine:
    """Implements `zbot.engine.Engine`: draws at once by itself, or step by step in the test's hands after `hold`.

    It holds its caller to the contract: nothing is drawn before a load, one picture at a time is on the card.
    """

    def __init__(self) -> None:
        self.card = ModelCard(
            model=MODEL,
            revision="1",
            dtype="float32",
            device="cpu",
            placement="resident",
            native_size=64,
        )
        self.pictures: list[Picture] = []  # all that were ever begun
        self.script: deque[BaseException | None] = (
            deque()
        )  # what becomes of the next ones that draw themselves
        self.load_errors: deque[BaseException] = deque()  # what the next loads raise
        self.loads = 0
        self.loaded = False
        self.closed = False
        self.violations: list[str] = []
        self._held = False
        self._begun: asyncio.Queue[Picture] = asyncio.Queue()

    # --- the protocol ---

    async def load(self, on_progress: OnLoad) -> ModelCard:
        self.loads += 1
        on_progress(LoadProgress(stage="transformer", done=1, total=2, seconds=0.1))
        if self.load_errors:
            raise self.load_errors.popleft()
        self.loaded = True
        return self.card

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        if not self.loaded:
            raise EngineDead("the engine is not loaded", on_card=False)
        if request.num_images != 1:
            self.violations.append("more than one picture in a request")
        if any(picture.on_card for picture in self.pictures):
            self.violations.append("a second picture while one is on the card")
        outcome: asyncio.Future[Drawn] = asyncio.get_running_loop().create_future()
        picture = Picture(request=request, on_step=on_step, outcome=outcome)
        self.pictures.append(picture)
        self._begun.put_nowait(picture)
        if not self._held:
            error = self.script.popleft() if self.script else None
            if isinstance(error, EngineDead):
                self.die(code=error.code)
            elif error is not None:
                picture.fail(error)
            else:
                picture.finish()
        try:
            return await outcome
        except asyncio.CancelledError:
            picture.was_cancelled = True
            raise

    async def close(self) -> None:
        self.closed = True
        self.loaded = False

    # --- in the test's hands ---

    def hold(self) -> None:
        """From now on do nothing by itself; a held picture that is left alone hangs."""
        self._held = True

    async def begun(self) -> Picture:
        """Return the next picture that was begun, in order, waiting for it."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._begun.get()

    @property
    def idle(self) -> bool:
        """Whether no begun picture is left unseen by `begun`."""
        return self._begun.empty()

    def die(self, *, code: str | None = None) -> None:
        """End the process: every picture in hand dies with it, and one of them was on the card."""
        self.loaded = False
        in_hand = [picture for picture in self.pictures if not picture.outcome.done()]
        on_card = next((picture for picture in in_hand if picture.on_card), None)
        for picture in in_hand:
            picture.fail(EngineDead("it died", code=code, on_card=picture is on_card))


@dataclass(kw_only=True, eq=False)
class Watched:
    """Implements `zbot.generator.Watcher`: remembers the steps."""

    steps: list[tuple[JobId, int, int]] = field(default_factory=list)

    def stepped(self, job: Job, picture: int, step: Step) -> None:
        self.steps.append((job.id, picture, step.number))


class FakeMessenger:
    """Implements `zbot.outbox.Messenger` and `zbot.progress.ProgressMessenger`: remembers what people see."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, JobId]] = []  # every attempt, also those that failed
        self.delivered: dict[JobId, list[Path]] = {}
        self.told: list[JobId] = []
        self.updates: list[tuple[JobId, Place | Drawing]] = []
        self.errors: deque[BaseException | None] = deque()  # what the next calls raise
        self.error: BaseException | None = None  # what every call raises
        self.under_way = 0
        self.most_under_way = 0
        self._gate = asyncio.Event()
        self._gate.set()

    async def deliver(self, job: Job, pictures: Sequence[Path]) -> int:
        await self._call("deliver", job)
        self.delivered[job.id] = list(pictures)
        return 10_000 + job.id

    async def tell(self, job: Job) -> int:
        await self._call("tell", job)
        self.told.append(job.id)
        return 10_000 + job.id

    async def update(self, job: Job, status: Place | Drawing) -> None:
        await self._call("update", job)
        self.updates.append((job.id, status))

    def hold(self) -> None:
        """Let no call return until `let_go`."""
        self._gate.clear()

    def let_go(self) -> None:
        """Let every call return."""
        self._gate.set()

    async def _call(self, kind: str, job: Job) -> None:
        self.calls.append((kind, job.id))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self._gate.wait()
            error = self.errors.popleft() if self.errors else self.error
            if error is not None:
                raise error
        finally:
            self.under_way -= 1


async def accept(
    store: Store,
    *,
    request: ImageRequest | None = None,
    origin: Origin | None = None,
    limits: Limits | None = None,
) -> Accepted:
    """Put a job into the line as `Queue.submit` does."""
    return await store.accept(
        request or a_request(),
        origin or an_origin(),
        admit=partial(policy.admit, limits=limits or Limits(per_person=10_000, in_all=10_000)),
        tags=policy.tags,
        withdrawn=threading.Event(),
    )


async def a_job(store: Store, state: JobState = JobState.QUEUED, **fields: Any) -> Job:
    """Return a job that went the legal way to a state; `fields` belong to its origin. The line must be empty."""
    job = (await accept(store, origin=an_origin(**fields))).job
    if state is JobState.CANCELLED:
        await store.cancel(job.id)
    elif state is not JobState.QUEUED:
        claimed = await store.claim()
        assert claimed is not None and claimed.id == job.id
    if state is JobState.FAILED:
        await store.fail(job.id, "generation")
    elif state in (JobState.RENDERED, JobState.DELIVERED, JobState.UNDELIVERABLE):
        await store.complete(job.id, gpu_s=0.5, model=MODEL, unused_prompt="")
    if state is JobState.DELIVERED:
        await store.delivered(job.id, 10_000 + job.id)
    elif state is JobState.UNDELIVERABLE:
        await store.undeliverable(job.id)
    job = await store.job(job.id)
    assert job.state is state
    return job
