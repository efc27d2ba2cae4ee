"""The real bot in a process of its own, started, watched, stopped and killed by a test."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.nursery import Forked, Nursery
from zbot.sandbox import Sandbox

REPOSITORY = Path(__file__).resolve().parents[1]
FAKE = "tests.e2e.fake_bot"  # bot.run() with an engine that a `Desk` in the test's process commands
PATIENCE_S = 30.0  # a start of the real engine on a busy machine; nothing waits so long that goes well
LONGEST_LINE_BYTES = 2**20
# What the interpreter itself needs; everything else of the developer's shell stays out.
INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")


class BotProcess:
    """One bot on one data directory, over as many lives as a test gives it; `log` is that of all of them."""

    def __init__(
        self,
        directory: Path,
        *,
        sandbox: Sandbox | None = None,
        nursery: Nursery | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Take the settings; nothing is started.

        `directory` becomes the working directory, with the data in `data/` there. A setting given as "" is not set
        at all. With a nursery it is the fake bot, forked there; without one it is bot.py, as people start it.
        """
        self.directory = directory
        self.data_dir = directory / "data"
        self.lines: list[str] = []
        self._sandbox = sandbox
        self._nursery = nursery
        self._settings = dict(settings or {})
        self._process: asyncio.subprocess.Process | Forked | None = None
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None, "the bot was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Say whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> str:
        """Everything it wrote to standard output and standard error."""
        return "\n".join(self.lines)

    def environment(self) -> dict[str, str]:
        """Return what the process gets to see: the settings and what an interpreter needs."""
        wanted = {name: os.environ[name] for name in INHERITED if name in os.environ}
        wanted |= {
            "HOME": str(self.directory),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "ZBOT_MODEL": "tiny",
            "ZBOT_DATA_DIR": str(self.data_dir),
        }
        if self._sandbox is not None:
            wanted |= {
                "DISCORD_TOKEN": self._sandbox.token,
                "ZBOT_DISCORD_API": self._sandbox.api_url,
                "ZBOT_DISCORD_GATEWAY": self._sandbox.gateway_url,
            }
        wanted |= self._settings
        return {name: value for name, value in wanted.items() if value}

    async def launch(self, *arguments: str) -> None:
        """Start the process and return at once."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._nursery is None:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                REPOSITORY / "bot.py",
                *arguments,
                cwd=self.directory,
                env=self.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=LONGEST_LINE_BYTES,
                start_new_session=True,
            )
            output = process.stdout
            assert output is not None
        else:
            assert not arguments, "the fake bot takes none"
            pipe = self.directory / "output"
            os.mkfifo(pipe)
            output = await _reading(pipe)
            self._process = self._nursery.start(
                FAKE, log=pipe, environment=self.environment(), directory=self.directory
            )
            await asyncio.shield(self._process.born)
            pipe.unlink()
        self._reader = asyncio.create_task(self._read(output))

    async def start(self) -> None:
        """Start it and return once it is on the gateway with its commands synced.

        Raises: AssertionError with its log if it ends instead.
        """
        assert self._sandbox is not None
        gateway, before = self._sandbox.gateway, self._sandbox.gateway.identifies
        await self.launch()
        ready = asyncio.create_task(
            self._sandbox.bus.until(
                lambda: (gateway.identifies > before and gateway.online) or None,
                topic="bot",
                timeout_s=PATIENCE_S,
                what="a bot on the gateway",
            )
        )
        ending = asyncio.create_task(self.ended(PATIENCE_S))
        try:
            await asyncio.wait({ready, ending}, return_when=asyncio.FIRST_COMPLETED)
            assert ready.done() and not ready.exception(), f"the bot did not come up:\n{self.log}"
        finally:
            for task in (ready, ending):
                task.cancel()
            await asyncio.gather(ready, ending, return_exceptions=True)

    async def ended(self, within_s: float = PATIENCE_S) -> int:
        """Wait until it has ended and has left the gateway; return its exit code. Raises: TimeoutError."""
        assert self._reader is not None
        code = await self.exit_code(within_s)
        async with asyncio.timeout(within_s):
            await asyncio.shield(self._reader)
            if self._sandbox is not None:
                gateway = self._sandbox.gateway
                await self._sandbox.bus.until(
                    lambda: not gateway.online or None,
                    topic="bot",
                    timeout_s=within_s,
                    what="a bot that left",
                )
        return code

    async def exit_code(self, within_s: float = PATIENCE_S) -> int:
        """Wait for the process alone and return its exit code. Raises: TimeoutError."""
        assert self._process is not None
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    async def terminate(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Ask it to end; return its exit code and the seconds it took."""
        began = time.monotonic()
        self.signal(number)
        return await self.ended(), time.monotonic() - began

    async def kill(self) -> None:
        """End it as a power cut does: now, and without its knowing."""
        self.signal(signal.SIGKILL)
        await self.ended()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the bot, not to its children."""
        os.kill(self.pid, number)

    async def logged(self, text: str, *, since: int = 0, within_s: float = PATIENCE_S) -> str:
        """Wait for a line with this text and return it; lines before the number `since` do not count.

        Raises: AssertionError with the log.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    for line in self.lines[since:]:
                        if text in line:
                            return line
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in the log:\n{self.log}") from None

    def children(self) -> list[int]:
        """Return the ids of its child processes."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(word) for word in listed.split()]

    async def close(self) -> None:
        """End it and whatever it started, however it stands; harmless when it has ended."""
        if self._process is None:
            return
        if self._process.returncode is None:
            # The group is its own, so nobody else is hit.
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        if self._reader is not None:
            await self._reader

    async def _read(self, output: asyncio.StreamReader) -> None:
        async for line in output:
            self.lines.append(line.decode(errors="replace").rstrip("\n"))
            self._news.set()


async def _reading(pipe: Path) -> asyncio.StreamReader:
    """Return what reads a named pipe, to the end of its last writer."""
    reader = asyncio.StreamReader(limit=LONGEST_LINE_BYTES)
    end = os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), end)
    return reader


@asynccontextmanager
async def bot_process(
    directory: Path,
    *,
    sandbox: Sandbox | None = None,
    settings: Mapping[str, str] | None = None,
    start: bool = True,
) -> AsyncIterator[BotProcess]:
    """Run a bot for the time of a block."""
    bot = BotProcess(directory, sandbox=sandbox, settings=settings)
    try:
        if start:
            await bot.start()
        yield bot
    finally:
        await bot.close()
