"""The engine's process: takes requests from the bot over a socket, one picture on the card at a time."""

import ctypes
import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zbot.engine._files import check_files, weight_files
from zbot.engine._options import EngineOptions
from zbot.engine._wire import Header, pack, receive_frame
from zbot.errors import EngineDead, GenerationCancelled, GenerationError, WeightsError, ZBotError
from zbot.request import ImageRequest

if TYPE_CHECKING:
    from zbot.engine.zimage import Denoised, Painter

log = logging.getLogger("zbot.engine.child")

EXIT_POISONED = 70  # the card's context is broken; only a new process helps
EXIT_NOT_LOADED = 71
WARM_UP_ALLOWANCE_S = 300.0  # building kernels on a slow machine
_PR_SET_PDEATHSIG = 1


class _Link:
    """The socket to the bot; any thread may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Send one frame; without the bot there is nothing left to do."""
        try:
            with self._sending:
                self._connection.sendall(pack(header, payload))
        except OSError:
            os._exit(0)

    def receive(self) -> Header | None:
        """Wait for the bot's next word; None when the bot is gone."""
        frame = receive_frame(self._connection)
        return None if frame is None else frame[0]


class _LogToBot(logging.Handler):
    """Sends records over the link, so that their level survives."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        self._link.send({"event": "log", "level": record.levelno, "text": self.format(record)})


class Child:
    """The main thread listens, one thread draws, one finishes pictures while the next is drawn."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._to_draw: queue.SimpleQueue[tuple[int, ImageRequest]] = queue.SimpleQueue()
        self._to_finish: queue.SimpleQueue[tuple[int, Denoised]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def listen(self) -> None:
        """Take the bot's words until it closes the connection."""
        while (word := self._link.receive()) is not None:
            match word["op"]:
                case "load":
                    options = EngineOptions.from_json(word["options"])
                    threading.Thread(target=self._live, args=(options,), name="draw", daemon=True).start()
                case "draw":
                    self._to_draw.put((int(word["id"]), ImageRequest(**word["request"])))
                case "cancel":
                    self._cancelled.add(int(word["id"]))
                case _:
                    return

    # --- the drawing thread ---

    def _live(self, options: EngineOptions) -> None:
        try:
            painter = self._load(options)
            threading.Thread(target=self._finish_all, args=(painter,), name="finish", daemon=True).start()
            warm_up = painter.warm_up()
            while True:
                number, request = self._next(warm_up)
                self._draw(painter, number, request)
        except BaseException:
            log.exception("the drawing thread ended")
            os._exit(1)

    def _load(self, options: EngineOptions) -> "Painter":
        began = time.monotonic()

        def on_progress(stage: str, done: int, total: int) -> None:
            progress = {"stage": stage, "done": done, "total": total, "seconds": time.monotonic() - began}
            self._link.send({"event": "loading", "progress": progress})

        try:
            on_progress("libraries", 0, sum(weight_files(Path(options.model_dir)).values()))
            check_files(Path(options.model_dir))
            from zbot.engine import zimage  # torch comes in here, so that what it raises is reported

            painter = zimage.load(options, on_progress)
        except ZBotError as error:
            self._fail_load(error)
        except MemoryError:
            self._fail_load(GenerationError("the machine has too little memory to load the model"))
        except ImportError as error:
            self._fail_load(
                WeightsError(f"the engine's libraries cannot be loaded: {error}; install them again")
            )
        except Exception as error:
            log.exception("loading failed")
            self._fail_load(EngineDead(f"loading failed: {type(error).__name__}: {error}", on_card=False))
        self._link.send({"event": "loaded", "card": asdict(painter.card)})
        return painter

    def _fail_load(self, error: ZBotError) -> NoReturn:
        self._link.send({"event": "load_failed", "error": describe(error)})
        os._exit(EXIT_NOT_LOADED)

    def _next(self, warm_up: Iterator[object]) -> tuple[int, ImageRequest]:
        """Return the next picture; warm up a little at a time while there is none."""
        while True:
            try:
                return self._to_draw.get_nowait()
            except queue.Empty:
                self._link.send({"event": "busy", "allowance_s": WARM_UP_ALLOWANCE_S})
                is_warm = next(warm_up, None) is None
                self._link.send({"event": "idle"})
                if is_warm:
                    return self._to_draw.get()

    def _draw(self, painter: "Painter", number: int, request: ImageRequest) -> None:
        def on_step(step: int, steps: int, preview: bytes | None) -> None:
            self._stop_if_cancelled(number)
            self._link.send({"event": "step", "id": number, "number": step, "total": steps}, preview or b"")

        try:
            self._stop_if_cancelled(number)
            self._link.send({"event": "started", "id": number, "allowance_s": painter.allowance_s(request)})
            denoised = painter.denoise(request, on_step)
        except Exception as error:
            self._fail(number, error)
            return
        self._to_finish.put((number, denoised))

    def _stop_if_cancelled(self, number: int) -> None:
        if number in self._cancelled:
            raise GenerationCancelled("cancelled")

    # --- the finishing thread ---

    def _finish_all(self, painter: "Painter") -> None:
        known = painter.card
        while True:
            number, denoised = self._to_finish.get()
            try:
                self._stop_if_cancelled(number)
                drawn = painter.finish(denoised)
            except Exception as error:
                self._fail(number, error)
            else:
                self._cancelled.discard(number)
                header: Header = {
                    "event": "drawn",
                    "id": number,
                    "seed": drawn.seed,
                    "gpu_s": drawn.gpu_s,
                    "unused_prompt": drawn.unused_prompt,
                }
                if painter.card is not known:
                    known = painter.card
                    header["card"] = asdict(known)
                self._link.send(header, drawn.png)
            del denoised

    def _fail(self, number: int, error: Exception) -> None:
        self._cancelled.discard(number)
        if not isinstance(error, ZBotError):
            log.error("a picture failed", exc_info=error)
            error = GenerationError(f"{type(error).__name__}: {error}"[:500])
        fatal = isinstance(error, EngineDead)
        self._link.send({"event": "failed", "id": number, "error": describe(error), "fatal": fatal})
        if fatal:
            os._exit(EXIT_POISONED)


def describe(error: ZBotError) -> Header:
    """Return an exception as the other side can build it again."""
    return {"kind": type(error).__name__, "detail": str(error), "code": error.code, "facts": error.facts}


def _end_with(parent_pid: int) -> None:
    """Have the kernel end this process when the bot ends; the closed socket does the same, a little later."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def main(fd: int, parent_pid: int) -> None:
    """Serve the bot on the inherited socket until it goes."""
    # Signals sent to the whole family (a terminal's ctrl-C, a service manager's stop) are for the bot to answer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_with(parent_pid)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    link = _Link(socket.socket(fileno=fd))
    logging.basicConfig(level=logging.INFO, handlers=[_LogToBot(link)], format="%(message)s")
    logging.captureWarnings(True)
    Child(link).listen()
    # Not sys.exit: it would wait for threads that may hang on the card.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
