"""The real bot as a process of its own, talking to a sandbox in this one."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from zbot.sandbox import Sandbox

ROOT = Path(__file__).parents[1]
READY_WITHIN_S = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True, eq=False)
class RunningBot:
    """A bot, its sandbox, and what /proc says of it."""

    sandbox: Sandbox
    process: asyncio.subprocess.Process
    data: Path
    log: Path
    began: float

    def cpu_s(self) -> float:
        """Return the processor time of the bot itself, without its child."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def child(self) -> int | None:
        """Return the engine's process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    async def until(self, probe: Callable[[], object], what: str, within_s: float = READY_WITHIN_S) -> None:
        """Wait for something that only a file or a counter tells."""
        deadline = time.monotonic() + within_s
        while not probe():
            if self.process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not within {within_s} s\n{self.log.read_text()[-4_000:]}")
            await asyncio.sleep(0.01)

    async def engine_ready(self) -> float:
        """Wait until the model is loaded; return the seconds since the start."""
        await self.until(lambda: "the engine is ready" in self.log.read_text(), "the engine")
        return time.monotonic() - self.began


@asynccontextmanager
async def running_bot(
    *command: str, environment: dict[str, str] | None = None, **settings: str
) -> AsyncGenerator[RunningBot]:
    """Run `python bot.py` (or another command of this interpreter) with the tiny model until the block ends."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZBOT_")}
    with tempfile.TemporaryDirectory(prefix="zbot-bench-") as name:
        data, log = Path(name) / "data", Path(name) / "log"
        async with Sandbox(port=0) as sandbox:
            given = {
                "DISCORD_TOKEN": sandbox.token,
                "ZBOT_DATA_DIR": str(data),
                "ZBOT_MODEL": "tiny",
                "ZBOT_DISCORD_API": sandbox.api_url,
                "ZBOT_DISCORD_GATEWAY": sandbox.gateway_url,
                **{f"ZBOT_{key.upper()}": value for key, value in settings.items()},
            }
            with log.open("w") as stream:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, *(command or ("bot.py",)), cwd=ROOT,
                    env=inherited | given | (environment or {}), stdout=stream, stderr=stream,
                )  # fmt: skip
            bot = RunningBot(sandbox=sandbox, process=process, data=data, log=log, began=time.monotonic())
            try:
                await sandbox.synced("imagine", timeout_s=READY_WITHIN_S)
                await sandbox.ready(timeout_s=READY_WITHIN_S)
                yield bot
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
