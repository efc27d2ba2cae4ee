"""The real bot with a scripted engine, every durable act numbered, and the will to die at any one of them.

It is told what to do by its environment:

    CRASH_AT      the point at which to send oneself SIGKILL, such as `store.claim#2:after`
    CRASH_RECORD  a file that gets every point that was reached, one a line
    CRASH_ANSWER_S how long an outcome waits for a killed bot's first answer
    CRASH_FINISH_S how long a stop lets the pictures in hand go on
    CRASH_FILE_BYTES the size that no file may exceed, as on a full disk
    CRASH_PACE_S  seconds between two steps of the engine
    CRASH_CLOCK_S seconds by which the wall clock is wrong
    CRASH_STEPS   JSON: after this many engine steps, step the wall clock by so many seconds
"""

import asyncio
import functools
import json
import os
import re
import resource
import signal
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp

import bot
import cogs._delivery
import zbot.config
import zbot.database
import zbot.generator
import zbot.images
import zbot.outbox
import zbot.recovery
import zbot.store
import zbot.weights
import zbot.writer
from tests.crash.picture import png_of
from zbot.engine import Drawn, LoadProgress, ModelCard, OnLoad, OnStep, Step
from zbot.request import ImageRequest

STEPS = 3
HOLD = "hold"  # a prompt with this word is drawn until somebody cancels it, or the file `release` appears


class ScriptedEngine:
    """Draws at once what `png_of` says; stands in for the child process with the model."""

    def __init__(self, data_dir: Path, pace_s: float) -> None:
        self._release = data_dir / "release"
        self._pace_s = pace_s

    async def load(self, on_progress: OnLoad) -> ModelCard:
        on_progress(LoadProgress(stage="script", done=1, total=1, seconds=0.0))
        return ModelCard(
            model="tiny",
            revision="script",
            dtype="float32",
            device="cpu",
            placement="resident",
            native_size=256,
        )

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        for number in range(1, STEPS + 1):
            await asyncio.sleep(self._pace_s)
            _clock.stepped()
            on_step(Step(number=number, total=STEPS))
            while HOLD in request.prompt and number == 1 and not self._release.exists():
                await asyncio.sleep(0.005)
        return Drawn(png=png_of(request.seed, request.prompt), seed=request.seed, gpu_s=self._pace_s * STEPS)

    async def close(self) -> None:
        pass


class _Points:
    """Counts the acts by name and dies at the chosen one; called from the event loop and from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._at = os.environ.get("CRASH_AT", "")
        path = os.environ.get("CRASH_RECORD")
        self._record = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else -1

    def begin(self, name: str) -> str:
        with self._lock:
            self._counts[name] += 1
            act = f"{name}#{self._counts[name]}"
        self.reach(f"{act}:before")
        return act

    def reach(self, point: str) -> None:
        if self._record >= 0:
            os.write(self._record, f"{point}\n".encode())
        if point == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


class _Clock:
    """A wall clock that is wrong and that jumps; `datetime.now` of the bot's own modules reads it."""

    def __init__(self) -> None:
        self.offset_s = float(os.environ.get("CRASH_CLOCK_S", "0"))
        self._jumps: dict[int, float] = {
            int(step): jump_s for step, jump_s in json.loads(os.environ.get("CRASH_STEPS", "{}")).items()
        }
        self._steps = 0

    def stepped(self) -> None:
        self._steps += 1
        self.offset_s += self._jumps.get(self._steps, 0.0)

    def install(self) -> None:
        import datetime as real
        import time

        clock = self

        class Shifted(real.datetime):
            @classmethod
            def now(cls, tz: real.tzinfo | None = None) -> real.datetime:
                return real.datetime.now(tz) + real.timedelta(seconds=clock.offset_s)

        for module in list(sys.modules.values()):
            name = getattr(module, "__name__", "")
            if name.startswith(("zbot.", "cogs.")) and getattr(module, "datetime", None) is real.datetime:
                module.datetime = Shifted  # type: ignore[attr-defined]
        wall = time.time
        time.time = lambda: wall() + clock.offset_s


_clock: _Clock


def install(points: _Points) -> None:
    """Put a point before and after everything that outlives the process."""
    write = zbot.writer.Writer.write

    def numbered_write(self: zbot.writer.Writer, change: Any, *, urgent: bool = True) -> Any:
        frame = sys._getframe(1)
        while frame.f_code.co_name.startswith("_") and frame.f_back is not None:
            frame = frame.f_back
        name = f"store.{frame.f_code.co_name}"

        act = points.begin(name)

        def torn(connection: Any) -> Any:
            result = change(connection)
            points.reach(f"{act}:uncommitted")
            return result

        done = write(self, torn, urgent=urgent)
        done.add_done_callback(lambda _: points.reach(f"{act}:after"))
        return done

    zbot.writer.Writer.write = numbered_write  # type: ignore[method-assign]

    migrate = zbot.database._migrate

    def numbered_migrate(*args: Any, **kwargs: Any) -> None:
        act = points.begin("store.migrate")
        migrate(*args, **kwargs)
        points.reach(f"{act}:uncommitted")

    zbot.database._migrate = numbered_migrate

    fsync, fdopen, replace, unlink = os.fsync, os.fdopen, Path.replace, Path.unlink

    def numbered_fsync(descriptor: int) -> None:
        act = points.begin("file.fsync")
        fsync(descriptor)
        points.reach(f"{act}:after")

    class Torn:
        """A file whose writing can be cut in the middle."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __enter__(self) -> "Torn":
            return self

        def __exit__(self, *_: object) -> None:
            self._stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

        def write(self, data: bytes) -> None:
            act = points.begin("file.write")
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()
            points.reach(f"{act}:half")
            self._stream.write(data[len(data) // 2 :])
            self._stream.flush()
            points.reach(f"{act}:after")

    def numbered_fdopen(descriptor: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = fdopen(descriptor, mode, *args, **kwargs)
        return Torn(stream) if mode == "wb" else stream

    def numbered_replace(self: Path, target: Path) -> Path:
        if Path(target).suffix != ".png":
            return replace(self, target)
        act = points.begin("file.rename")
        result = replace(self, target)
        points.reach(f"{act}:after")
        return result

    def numbered_unlink(self: Path, missing_ok: bool = False) -> None:
        act = points.begin("file.unlink") if self.suffix == ".png" else ""
        unlink(self, missing_ok=missing_ok)
        if act:
            points.reach(f"{act}:after")

    os.fsync, os.fdopen = numbered_fsync, numbered_fdopen  # type: ignore[assignment]
    Path.replace, Path.unlink = numbered_replace, numbered_unlink  # type: ignore[method-assign, assignment]

    request = aiohttp.ClientSession._request

    async def numbered_request(self: aiohttp.ClientSession, method: str, url: Any, **kwargs: Any) -> Any:
        path = re.sub(r"^.*/api/v10", "", str(url).partition("?")[0])
        path = re.sub(r"(?<=/)(\d{10,}|[\w-]{60,})(?=/|$)", "*", path)
        path = "/gateway" if path.startswith("ws:") else path
        act = points.begin(f"http.{method} {path}")
        response = await request(self, method, url, **kwargs)
        points.reach(f"{act}:after")
        return response

    aiohttp.ClientSession._request = numbered_request  # type: ignore[method-assign]


def main() -> int:
    """Be one bot, as the environment says; return its exit code."""
    global _clock
    _clock = _Clock()
    if "CRASH_CLOCK_S" in os.environ or "CRASH_STEPS" in os.environ:
        _clock.install()
    if limit_bytes := int(os.environ.get("CRASH_FILE_BYTES", "0")):
        # Writing beyond it fails with EFBIG; the signal that comes with it would end the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    if os.environ.get("CRASH_AT") or os.environ.get("CRASH_RECORD"):
        install(_Points())
    # Where nothing stalls, a killed bot's first answer arrives within milliseconds or never: nobody waits 5 s for it.
    answer_s = float(os.environ.get("CRASH_ANSWER_S", "0.5"))
    cogs._delivery.FIRST_ANSWER_WITHIN = timedelta(seconds=answer_s)
    if finish_s := os.environ.get("CRASH_FINISH_S"):
        zbot.generator.FINISH_WITHIN_S = float(finish_s)
    pace_s = float(os.environ.get("CRASH_PACE_S", "0.002"))
    bot.run = functools.partial(bot.run, make_engine=lambda settings: ScriptedEngine(settings.data, pace_s))
    sys.argv[:] = ["bot.py"]
    return bot.main()


if __name__ == "__main__":
    sys.exit(main())
