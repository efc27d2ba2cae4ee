"""Builds the engine that the settings ask for."""

from collections.abc import Mapping
from pathlib import Path

from zbot.config import Settings
from zbot.engine.process import EngineOptions, ProcessEngine
from zbot.weights import ModelFiles


def process_engine(
    settings: Settings,
    files: ModelFiles,
    *,
    preview: bool = True,
    lora_files: Mapping[str, Path] | None = None,
) -> ProcessEngine:
    """Return the engine that draws in a child process; nothing is started before its `load`.

    `lora_files` are LoRA files by name, beside those of the settings' directory.
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
        preview=settings.preview and preview,
        lora_dir=str(settings.loras),
        lora_files={name: str(path.resolve()) for name, path in (lora_files or {}).items()},
    )
    # Kernels are compiled once for a card, in seconds; every later start takes them from here.
    kernels = {"TRITON_CACHE_DIR": str(settings.cache / "triton")}
    return ProcessEngine(options, stall_s=settings.stall_s, env=kernels)
