"""One life of the engine's process, from its start to its end, as the bot's side sees it."""

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from zbot import errors
from zbot.engine import Drawn, LoadProgress, ModelCard, OnLoad, OnStep, Step
from zbot.engine._options import EngineOptions
from zbot.engine._wire import Header, pack, read_frame
from zbot.errors import EngineDead, GenerationError, ZBotError
from zbot.request import ImageRequest

log = logging.getLogger("zbot.engine")

CHILD_MODULE = "zbot.engine.child"
READ_BUFFER_BYTES = 1 << 20  # a picture of a few megabytes arrives in a few pieces
LOG_LINE_CHARACTERS = 2_000
SHORTEST_PROMPT_BYTES = 8
LAST_WORDS_S = 2.0  # what a dying child may take to flush its output
DUMP_S = 0.2  # what faulthandler takes to write where a stalled child hangs


@dataclass(slots=True, kw_only=True, eq=False)
class _Picture:
    """A picture in the child's hands."""

    number: int
    prompt: str
    on_step: OnStep
    result: "asyncio.Future[Drawn]"
    heard_at: float
    started: bool = False
    allowance_s: float = 0.0  # what the child asked for beyond the usual patience


@dataclass(slots=True, kw_only=True, eq=False)
class _Loading:
    """A load under way."""

    on_progress: OnLoad
    result: "asyncio.Future[ModelCard]"


@dataclass(slots=True, eq=False)
class Life:
    """A running child with its connection; made by `start`, used from one event loop."""

    _process: asyncio.subprocess.Process
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _stall_s: float
    _load_stall_s: float
    card: ModelCard | None = None
    _loading: _Loading | None = None
    _pictures: dict[int, _Picture] = field(default_factory=dict[int, _Picture])
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _heard_at: float = 0.0
    _allowance_s: float = 0.0
    _culprit: int | None = None  # the picture that is known to have caused the end
    _cause: tuple[str, str] | None = (
        None  # code and detail of the end, when we know better than the exit status
    )
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list["asyncio.Task[None]"])
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def start(cls, env: Mapping[str, str], *, stall_s: float, load_stall_s: float) -> Self:
        """Start a child and connect to it.

        Raises: EngineDead when no process can be started.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        command = [sys.executable, "-P", "-m", CHILD_MODULE, str(theirs.fileno()), str(os.getpid())]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(env),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # Out of the terminal's group: its ctrl-C is for the bot, which lets the step in hand finish. Not out of
                # its session: Linux shares the processor between sessions first, and a lower priority of the child
                # would then mean nothing to the bot.
                process_group=0,
            )
        except OSError as error:
            ours.close()
            raise EngineDead(f"the engine's process cannot be started: {error}", on_card=False) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=READ_BUFFER_BYTES)
        life = cls(
            process, reader, writer, stall_s, load_stall_s, _heard_at=asyncio.get_running_loop().time()
        )
        life._tasks = [
            asyncio.create_task(life._pump_log(), name="engine-log"),
            asyncio.create_task(life._watch(), name="engine-watchdog"),
        ]
        life._tasks.append(asyncio.create_task(life._listen(), name="engine-listener"))
        return life

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Tell whether the process is gone or about to be."""
        return self._ended.is_set() or self._cause is not None or self._process.returncode is not None

    # --- what the engine asks for ---

    async def load(self, options: EngineOptions, on_progress: OnLoad) -> ModelCard:
        """Have the model loaded. Raises: WeightsError, OutOfMemory, EngineDead."""
        loop = asyncio.get_running_loop()
        if self._ended.is_set():
            raise self._death(on_card=False)
        self._loading = _Loading(on_progress=on_progress, result=loop.create_future())
        self._send({"op": "load", "options": options.to_json()})
        self.card = await self._loading.result
        self._loading = None
        return self.card

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        """Have one picture drawn. Raises: GenerationError."""
        if self.has_ended:
            raise self._death(on_card=False)
        loop = asyncio.get_running_loop()
        picture = _Picture(
            number=next(self._numbers),
            prompt=request.prompt,
            on_step=on_step,
            result=loop.create_future(),
            heard_at=loop.time(),
        )
        self._pictures[picture.number] = picture
        self._send({"op": "draw", "id": picture.number, "request": asdict(request)})
        try:
            return await picture.result
        except asyncio.CancelledError:
            self._cancel(picture)
            raise

    async def close(self, within_s: float) -> None:
        """Ask the child to end; kill it when it does not in time."""
        if not self.has_ended:
            self._cause = ("engine_dead", "the engine was closed")
            self._send({"op": "close"})
            try:
                await asyncio.wait_for(self._ended.wait(), within_s)
            except TimeoutError:
                log.warning("the engine's process did not end within %.0f s and is killed", within_s)
        await self.kill()

    async def kill(self) -> None:
        """End the child at once, with whatever it started, and wait until it is gone."""
        if self._process.returncode is None and not self._ended.is_set():
            self._cause = self._cause or ("engine_dead", "the engine was ended")
            self._signal_group(signal.SIGKILL)
        await self._ended.wait()

    # --- frames ---

    def _send(self, header: Header) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(header))

    def _cancel(self, picture: _Picture) -> None:
        # It stays in the table until the child confirms: the watchdog must go on watching it.
        if picture.number in self._pictures and not self._ended.is_set():
            self._send({"op": "cancel", "id": picture.number})

    async def _listen(self) -> None:
        try:
            while frame := await read_frame(self._reader):
                self._heard_at, self._allowance_s = asyncio.get_running_loop().time(), 0.0
                self._take(*frame)
        except Exception:
            log.exception("the engine's process sent something that cannot be read")
            self._cause = self._cause or (
                "engine_dead",
                "the engine's process sent something that cannot be read",
            )
        await self._bury()

    def _take(self, header: Header, payload: bytes) -> None:
        event = header["event"]
        if event == "log":
            log.log(int(header["level"]), "%s", self._without_prompts(str(header["text"])))
        elif event in ("loading", "loaded", "load_failed"):
            self._take_loading(event, header)
        elif event == "busy":
            self._allowance_s = float(header["allowance_s"])
        elif event != "idle" and (picture := self._pictures.get(int(header["id"]))):
            self._take_drawing(event, header, payload, picture)

    def _take_loading(self, event: str, header: Header) -> None:
        loading = self._loading
        if loading is None or loading.result.done():
            return
        if event == "loaded":
            loading.result.set_result(ModelCard(**header["card"]))
        elif event == "load_failed":
            loading.result.set_exception(error_from(header["error"]))
        else:
            try:
                loading.on_progress(LoadProgress(**header["progress"]))
            except Exception as error:
                loading.result.set_exception(error)

    def _take_drawing(self, event: str, header: Header, payload: bytes, picture: _Picture) -> None:
        picture.heard_at = self._heard_at
        if event == "started":
            picture.started = True
            picture.allowance_s = float(header["allowance_s"])
            return
        if event == "step":
            self._report(
                picture, Step(number=header["number"], total=header["total"], preview=payload or None)
            )
            return
        if event == "failed" and header.get("fatal"):
            # The child ends itself after this; what is in flight learns it from the end, this picture as the culprit.
            self._culprit = picture.number
            self._cause = ("engine_dead", str(header["error"]["detail"]))
            return
        del self._pictures[picture.number]
        card = ModelCard(**header["card"]) if "card" in header else None
        self.card = card or self.card
        if picture.result.done():
            return
        if event == "drawn":
            picture.result.set_result(
                Drawn(
                    png=payload,
                    seed=header["seed"],
                    gpu_s=header["gpu_s"],
                    unused_prompt=header["unused_prompt"],
                    card=card,
                )
            )
        else:
            picture.result.set_exception(error_from(header["error"]))

    def _report(self, picture: _Picture, step: Step) -> None:
        if picture.result.done():
            return
        try:
            picture.on_step(step)
        except Exception as error:  # the caller's own mistake ends the caller's picture, not the engine
            picture.result.set_exception(error)
            self._cancel(picture)

    # --- the end ---

    async def _watch(self) -> None:
        """Kill the child when a picture, or the load, is not heard of for too long."""
        loop = asyncio.get_running_loop()
        pause_s = min(1.0, self._stall_s / 8)
        while True:
            slept_from = loop.time()
            await asyncio.sleep(pause_s)
            now = loop.time()
            if now - slept_from > 4 * pause_s + 1.0:
                # This loop stood still itself: what the child said meanwhile is still unread.
                self._heard_at = now
                for picture in self._pictures.values():
                    picture.heard_at = now
                continue
            if self._stalled(now):
                self._signal_group(signal.SIGUSR1)  # the child writes where each of its threads stands
                await asyncio.sleep(DUMP_S)
                self._signal_group(signal.SIGKILL)
                return

    def _stalled(self, now: float) -> bool:
        if self._loading is not None:
            if now - self._heard_at <= self._load_stall_s:
                return False
            self._cause = ("engine_stalled", f"loading did not move for {self._load_stall_s:.0f} s")
            return True
        for picture in self._pictures.values():
            # One that waits in the child is as well as the child is.
            heard_at = picture.heard_at if picture.started else max(picture.heard_at, self._heard_at)
            patience_s = max(self._stall_s, picture.allowance_s, self._allowance_s)
            if now - heard_at > patience_s:
                self._culprit = picture.number if picture.started else None
                self._cause = ("engine_stalled", f"nothing was heard of the picture for {patience_s:.0f} s")
                log.error("%s; the engine's process is replaced", self._cause[1])
                return True
        return False

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    async def _bury(self) -> None:
        """Wait for the exit status and tell everyone who waits for something."""
        pump, watchdog, *_ = self._tasks
        watchdog.cancel()
        self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), LAST_WORDS_S)
        except TimeoutError:
            self._signal_group(signal.SIGKILL)
            await self._process.wait()
        await asyncio.wait({pump}, timeout=LAST_WORDS_S)
        pump.cancel()
        self._ended.set()
        if self._loading is not None and not self._loading.result.done():
            self._loading.result.set_exception(self._death(on_card=False))
        blamed = self._blamed()
        for picture in self._pictures.values():
            if not picture.result.done():
                picture.result.set_exception(self._death(on_card=picture.number == blamed))
        self._pictures.clear()

    def _blamed(self) -> int | None:
        """Return the picture the card was working on: the known culprit, else the last one that was begun.

        The one before it may still be decoded, but nearly all of the card's time is denoising. Draw both alone to be
        sure.
        """
        if self._culprit is not None:
            return self._culprit
        if self._cause is not None and self._cause[0] == "engine_dead":
            return None  # we ended it ourselves
        return max((picture.number for picture in self._pictures.values() if picture.started), default=None)

    def _death(self, *, on_card: bool) -> EngineDead:
        if self._cause is not None:
            code, detail = self._cause
            return EngineDead(detail, code=code, on_card=on_card)
        status = self._process.returncode
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status}"
        return EngineDead(f"the engine's process {how}", on_card=on_card)

    # --- its output ---

    async def _pump_log(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while piece := await stream.read(8192):
            *lines, rest = (rest + piece).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._log_line(line)
            if len(rest) > LOG_LINE_CHARACTERS:
                self._log_line(rest)
                rest = b""
        self._log_line(rest)

    def _log_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            log.info("%s", self._without_prompts(text[:LOG_LINE_CHARACTERS]))

    def _without_prompts(self, text: str) -> str:
        for picture in self._pictures.values():
            # A shorter one tells nobody anything and would be found within other words.
            if len(picture.prompt.encode()) >= SHORTEST_PROMPT_BYTES:
                text = text.replace(picture.prompt, "<prompt>")
        return text


def error_from(value: Mapping[str, Any]) -> ZBotError:
    """Return the exception that the child described."""
    kind = getattr(errors, str(value["kind"]), GenerationError)
    return kind(value["detail"], code=value["code"], **value["facts"])
