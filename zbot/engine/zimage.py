"""Loads Z-Image as the options say, in the dtype and place that suit the machine."""

# diffusers exports through a lazy module that pyright cannot see, and is partly untyped.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers
import torch
import transformers

import zbot
from zbot.engine import ModelCard, _load, _placement
from zbot.engine._faults import attempt, release_memory
from zbot.engine._files import check_files
from zbot.engine._options import EngineOptions
from zbot.engine._painter import Denoised, Painter
from zbot.errors import ConfigError, OutOfMemory

__all__ = ["Denoised", "Painter", "load"]

log = logging.getLogger(__name__)

# Backends that come with torch; the others need a package, and those ending in _hub fetch code from the network.
ATTENTION_BACKENDS = ("auto", "native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")
DRAWING_NICENESS = 10


def load(options: EngineOptions, on_progress: Callable[[str, int, int], None]) -> Painter:
    """Load the model as the options say, in the dtype and place that suit the machine.

    Raises: WeightsError, OutOfMemory, ConfigError.
    """
    directory = Path(options.model_dir)
    fingerprint = check_files(directory)
    if options.compile not in ("auto", "off"):
        raise ConfigError(f"the compile setting {options.compile!r} is unknown; use auto or off")
    if options.attention not in ATTENTION_BACKENDS:
        raise ConfigError(
            f"the attention {options.attention!r} is not one of {', '.join(ATTENTION_BACKENDS)}"
        )
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    if options.dtype == "float8" and options.quantization != "none":
        raise ConfigError(
            f"ZBOT_PRECISION=fp8 and ZBOT_QUANTIZATION={options.quantization} are two ways to do one thing; take one"
        )
    device = _placement.choose_device(options.device)
    _prepare_process(device, options)
    dtype = _placement.choose_dtype(options.dtype, device, _load.measure(directory, torch.float32).all_parts)
    size = _load.quantized_size(_load.measure(directory, dtype), options)
    placement = _placement.choose_placement(options.placement, device, size, quantized=options.is_quantized)
    card = ModelCard(
        model=options.model,
        revision=options.revision or fingerprint,
        dtype="float8" if options.dtype == "float8" else str(dtype).removeprefix("torch."),
        device=_device_name(device),
        placement=placement,
        native_size=_load.native_size(directory),
        versions={
            "zbot": zbot.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    )
    while True:
        here = replace(card, placement=placement)
        painter, said = _attempt_load(
            partial(_assemble, directory, here, device, dtype, options, on_progress)
        )
        if painter is not None:
            return painter
        release_memory()
        smaller = _placement.fallback(placement, device, options)
        if smaller is None:
            raise OutOfMemory(f"the model does not fit with placement {placement}: {said}")
        log.warning("the model does not fit with placement %s (%s); trying %s", placement, said, smaller)
        placement = smaller


def _attempt_load(assemble: Callable[[], Painter]) -> tuple[Painter | None, str]:
    """Return (what was assembled, "") or, if memory ran out, (None, what was said)."""
    try:
        return attempt(assemble)
    except OutOfMemory as error:  # in words already, by whoever knows the part
        return None, str(error)


def _assemble(
    directory: Path,
    card: ModelCard,
    device: torch.device,
    dtype: torch.dtype,
    options: EngineOptions,
    on_progress: Callable[[str, int, int], None],
) -> Painter:
    onto = device if card.placement in ("resident", "tiled") else None
    parts = _load.load_parts(
        directory, dtype=dtype, device=device, onto=onto, options=options, on_part=on_progress
    )
    pipe = diffusers.ZImagePipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    _placement.place(pipe, card.placement, device)
    if options.attention != "auto":
        pipe.transformer.set_attention_backend(options.attention)
    return Painter(pipe, card, device, options)


def _prepare_process(device: torch.device, options: EngineOptions) -> None:
    if device.type == "cpu" and options.gives_way:
        _give_way()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if options.memory_fraction < 1.0:
            torch.cuda.set_per_process_memory_fraction(options.memory_fraction, device)


def _give_way() -> None:
    """Leave the processor to whoever else wants it: the bot must get its turn to answer at once.

    It holds for this thread and those it starts, torch's team among them.
    """
    if sys.platform == "linux":
        # A low niceness alone still keeps a core from the bot until the kernel gets round to moving it there.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(DRAWING_NICENESS)


def _device_name(device: torch.device) -> str:
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
