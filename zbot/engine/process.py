"""Runs the engine in a child process that can be killed and replaced without the bot noticing more than a pause."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from zbot.engine import Drawn, ModelCard, OnLoad, OnStep
from zbot.engine._life import Life
from zbot.engine._options import EngineOptions
from zbot.errors import EngineDead
from zbot.request import ImageRequest

__all__ = ["EngineOptions", "ProcessEngine"]

# Nothing of the model may be fetched while the bot serves: see the offline switches of each library.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY")
_OWN_PREFIXES = ("DISCORD_", "ZBOT_")


class ProcessEngine:
    """The engine that draws in a process of its own; see `zbot.engine.Engine` for the contract.

    Every EngineDead says in `facts["on_card"]` whether this picture was the one the card worked on.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        stall_s: float = 60.0,
        load_stall_s: float = 900.0,
        close_s: float = 3.0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Take the settings; nothing is started before `load`.

        A picture of which nothing is heard for `stall_s` ends the process; so does a load without progress for
        `load_stall_s` (one part of the model may come from a slow disk). `env` is added to the child's environment.
        """
        self._options = options
        self._stall_s = stall_s
        self._load_stall_s = load_stall_s
        self._close_s = close_s
        self._env = dict(env or {})
        self._life: Life | None = None
        self._loading = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The child's process id, or None when there is no child."""
        return None if self._life is None or self._life.has_ended else self._life.pid

    async def load(self, on_progress: OnLoad) -> ModelCard:
        """Start the child and load the model, or return the card of the one that is loaded and alive.

        Raises: WeightsError, OutOfMemory, EngineDead.
        """
        async with self._loading:
            if self._life is not None and self._life.card is not None and not self._life.has_ended:
                return self._life.card
            if self._life is not None:
                await self._life.kill()
            life = await Life.start(
                child_environment(self._options, self._env),
                stall_s=self._stall_s,
                load_stall_s=self._load_stall_s,
            )
            self._life = life
            try:
                return await life.load(self._options, on_progress)
            except BaseException:
                await life.kill()
                raise

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        """Draw one picture and report every step; cancelling the awaiting task stops it at its next step.

        Raises: GenerationError; after EngineDead call `load` again.
        """
        if request.num_images != 1:
            raise ValueError("the engine draws one picture at a time")
        if self._life is None or self._life.card is None:
            raise EngineDead("the engine is not loaded", on_card=False)
        return await self._life.draw(request, on_step)

    async def close(self) -> None:
        """Ask the child to end and kill it if it does not within `close_s`; idempotent."""
        if self._life is not None:
            await self._life.close(self._close_s)


def child_environment(options: EngineOptions, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the child: ours without secrets and settings, offline, with the thread counts set."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OWN_PREFIXES) and not any(word in name.upper() for word in _SECRET_WORDS)
    }
    threads = str(options.threads or usable_cores())
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **kept,
        **OFFLINE,
        # OpenMP's team is fixed before torch is imported; the same count gives the same bytes.
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # A team that spins while it waits loses ten times over as soon as anything else wants the processor.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        **extra,
    }


def usable_cores() -> int:
    """Return how many physical cores this process may use: hyper-threads only get in each other's way in torch."""
    usable = os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))
    cores: set[str] = set()
    for cpu in usable:
        try:
            topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            cores.add(topology.read_text(encoding="ascii"))
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
