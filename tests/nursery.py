"""A process that has imported the bot once and forks bots: a start costs 0.05 s of a processor instead of 0.5 s.

`python -m tests.nursery MODULE...` imports the modules, then forks a child for every line of JSON on standard input. The
child runs `main()` of the module that the line names and ends with what that returns.
"""

import asyncio
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODULES = ("tests.crash.victim", "tests.e2e.fake_bot")


@dataclass(slots=True, eq=False)
class Forked:
    """One process that a nursery forked."""

    id: int
    log: Path
    born: asyncio.Future[int]
    ended: asyncio.Future[int]

    @property
    def pid(self) -> int:
        """The process's id; it has one once `born` is done."""
        return self.born.result()

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal's number for a death by it; None while it lives."""
        return self.ended.result() if self.ended.done() else None

    @property
    def alive(self) -> bool:
        """Say whether it was born and has not ended."""
        return self.born.done() and not self.ended.done()

    async def wait(self) -> int:
        """Return the exit code once it has ended."""
        return await asyncio.shield(self.ended)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def end(self, number: int = signal.SIGTERM, *, within_s: float = 30.0) -> int:
        """Send a signal and return the exit code. Raises: TimeoutError."""
        self.kill(number)
        async with asyncio.timeout(within_s):
            return await self.wait()


class Nursery:
    """The test's end of it; started once, used from every test's event loop in turn."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", *MODULES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._pending = b""
        self._count = 0
        self._alive: dict[int, Forked] = {}

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Nursery"]:
        """Hear of births and deaths in this event loop; nobody lives longer than the block."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._stdout.fileno(), self._hear)
        try:
            yield self
        finally:
            for forked in tuple(self._alive.values()):
                await asyncio.shield(forked.born)
                await forked.end(signal.SIGKILL)
            loop.remove_reader(self._stdout.fileno())

    def start(self, module: str, *, log: Path, environment: Mapping[str, str], directory: Path) -> Forked:
        """Start a process with this environment and no other; what it writes is added to `log`, which may be a pipe."""
        loop = asyncio.get_running_loop()
        self._count += 1
        forked = Forked(id=self._count, log=log, born=loop.create_future(), ended=loop.create_future())
        self._alive[forked.id] = forked
        order = {
            "id": forked.id,
            "module": module,
            "log": str(log),
            "environment": dict(environment),
            "directory": str(directory),
        }
        self._stdin.write(json.dumps(order).encode() + b"\n")
        self._stdin.flush()
        return forked

    def _hear(self) -> None:
        try:
            data = os.read(self._stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not data:
            raise RuntimeError("the nursery has ended")
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            fact = json.loads(line)
            if "pid" in fact:
                self._alive[fact["id"]].born.set_result(fact["pid"])
            else:
                self._alive.pop(fact["id"]).ended.set_result(fact["ended"])

    def close(self) -> None:
        """End the nursery."""
        self._stdin.close()
        self._process.wait(10)
        self._stdout.close()


def nurse(modules: list[str]) -> None:
    """Fork for every order on standard input; tell the process id, and later how it ended."""
    from cogs._client import EXTENSIONS

    # bot.py imports the commands late, so that `--help` answers at once; every child would import them again.
    for name in (*EXTENSIONS, *modules):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    alive: dict[int, int] = {}
    wake, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    pending = b""
    while True:
        with contextlib.suppress(InterruptedError):
            readable, _, _ = select.select([0, wake], [], [])
        if wake in readable:
            os.read(wake, 4096)
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            _say({"id": alive.pop(pid), "ended": os.waitstatus_to_exitcode(status)})
        if 0 not in readable:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            # Before the fork: a reader of a pipe sees no end before there was a beginning.
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            pid = os.fork()
            if pid == 0:
                _be_born(order, log)
            os.close(log)
            os.setpgid(pid, pid)  # whoever ends its group hits nobody else
            alive[pid] = order["id"]
            _say({"id": order["id"], "pid": pid})


def _be_born(order: dict[str, Any], log: int) -> None:
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(order["directory"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv[:] = [order["module"]]
        code = sys.modules[order["module"]].main()
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _say(fact: dict[str, Any]) -> None:
    os.write(1, json.dumps(fact).encode() + b"\n")


if __name__ == "__main__":
    nurse(sys.argv[1:])
