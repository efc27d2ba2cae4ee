"""Builds the engine that the settings ask for, and finds the model's files for it."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from zbot import card, weights
from zbot.config import Settings
from zbot.engine import Drawn, ModelCard, OnLoad, OnStep
from zbot.engine.process import EngineOptions, ProcessEngine
from zbot.errors import ConfigError, EngineDead, OutOfMemory
from zbot.request import ImageRequest
from zbot.weights import ModelFiles

log = logging.getLogger(__name__)


class LocatingEngine:
    """The bot's engine: looks for the model's files and the card at every load; see `zbot.engine.Engine`.

    So a model that is missing or damaged when the bot starts, or becomes so while it runs, is drawn with as soon as it
    is mended, also where it then lies in another directory (`weights convert`, `weights move`). The same holds for a
    driver that is too old and for a card that another program has filled.
    """

    def __init__(self, settings: Settings) -> None:
        """Take the settings; nothing is looked at before `load`."""
        self._settings = settings
        self._files: ModelFiles | None = None
        self._engine: ProcessEngine | None = None

    async def load(self, on_progress: OnLoad) -> ModelCard:
        """Find the model's files and load them.

        Raises: WeightsError, OutOfMemory, EngineDead; ConfigError, also for a card that torch cannot use.
        """
        files = await asyncio.to_thread(self._locate)
        taken_mib = await look_at_card(files.model, self._settings.device)
        if self._engine is None or files != self._files:
            await self.close()
            self._engine, self._files = process_engine(self._settings, files), files
        if taken_mib <= card.OTHERS_MIB:
            return await self._engine.load(on_progress)
        others = f"other programs hold {taken_mib / 1024:.1f} GiB of the card (`nvidia-smi` names them)"
        log.warning("%s; the model may have to be loaded in a slower way", others)
        try:
            return await self._engine.load(on_progress)
        except OutOfMemory as error:
            raise OutOfMemory(f"{error}; {others}: end them") from error

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        """Draw one picture. Raises: GenerationError."""
        if self._engine is None:
            raise EngineDead("the engine is not loaded", on_card=False)
        return await self._engine.draw(request, on_step)

    async def close(self) -> None:
        """End the engine; idempotent."""
        if self._engine is not None:
            await self._engine.close()

    def _locate(self) -> ModelFiles:
        weights.prepare_environment(self._settings.cache)
        return weights.locate(self._settings.model, self._settings.cache)


async def look_at_card(model: str, device: str) -> int:
    """Return how much of the card, in MiB, is taken before the model is loaded; 0 where nobody can tell.

    Raises: ConfigError: there is a card, and torch cannot use it. Unnoticed, the processor would draw, and take
    minutes for what takes a second.
    """
    if model == weights.TINY or device in ("cpu", "mps"):
        return 0
    try:
        answer = await card.ask()
    except TimeoutError as error:
        raise ConfigError("the card's driver does not answer; restart the machine") from error
    if answer is None:
        return 0
    if (trouble := card.trouble(answer, card.torch_build())) is not None:
        repair = trouble.repair[0].lower() + trouble.repair[1:].removesuffix(".")
        raise ConfigError(f"{trouble.fact}; {repair}, or set ZBOT_DEVICE=cpu to draw without the card")
    found = card.read(answer)
    return found[0].taken_mib if len(found) == 1 else 0  # torch may count several in another order


def process_engine(
    settings: Settings,
    files: ModelFiles,
    *,
    for_bot: bool = True,
    lora_files: Mapping[str, Path] | None = None,
) -> ProcessEngine:
    """Return the engine that draws in a child process; nothing is started before its `load`.

    Other than for a bot it makes no previews, and need not give way to one that must answer. `lora_files` are LoRA
    files by name, beside those of the settings' directory.
    """
    options = EngineOptions(
        model_dir=str(files.directory),
        model=files.model,
        revision=files.revision,
        device=settings.device,
        dtype=settings.dtype,
        placement=settings.placement,
        quantization=settings.quantization,
        compile=settings.compile,
        gives_way=for_bot,
        preview=settings.preview and for_bot,
        lora_dir=str(settings.loras),
        lora_files={name: str(path.resolve()) for name, path in (lora_files or {}).items()},
    )
    # Kernels are compiled once for a card, in seconds; every later start takes them from here.
    kernels = {"TRITON_CACHE_DIR": str(settings.cache / "triton")}
    return ProcessEngine(options, stall_s=settings.stall_s, env=kernels)
