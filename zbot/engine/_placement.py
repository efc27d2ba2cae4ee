"""Decides where the parts of the model lie in memory, from what is free, and puts them there."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zbot.engine import _fp8 as fp8
from zbot.engine._options import EngineOptions
from zbot.errors import ConfigError

log = logging.getLogger(__name__)

# From fastest to smallest. `tiled` is resident with the picture decoded in tiles; `encoder_offload` streams the text
# encoder only, so that what runs at every step stays on the card and on the fast path.
PLACEMENTS = (
    "resident",
    "tiled",
    "encoder_offload",
    "group_offload",
    "model_offload",
    "sequential_offload",
)
# `model_offload` takes five times as long as `group_offload` and five times as much of the card: only when it is set.
_AUTOMATIC = tuple(placement for placement in PLACEMENTS if placement != "model_offload")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

TILE_PIXELS = 512  # the VAE's own tile is 1024, which changes nothing at 1024x1024

# Working memory at 1024x1024 and 512 tokens beside bf16 weights, with what the allocator cannot use. Measured on one
# H200 that was kept to less: resident draws within 23.25 GiB (weights 19.1) and not within 21.2; in tiles not within
# 20.6; with the text encoder streamed within 13.0 (weights 12.3) and not 12.8; streamed by groups within 1.6.
_WORK_BYTES = int(4.0 * 2**30)
_WORK_TILED_BYTES = int(2.4 * 2**30)
_WORK_STREAMED_BYTES = int(1.8 * 2**30)
_NATIVE_PIXELS_OF_WORK = 1024 * 1024
_GROUP_FRACTION = 0.1  # of the largest part: a few blocks and their prefetched successors
_ENCODER_FRACTION = (
    0.1  # of the text encoder while it is streamed: its table of tokens, the largest single layer
)

ARENA_BYTES = 2**30  # a power of two, or torch makes it one
ALIGNMENT = 512  # as torch aligns tensors on the card; copies are fastest so
_GROUP_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What the parts of a model take in the dtype they are run in, in bytes."""

    text_encoder: int
    transformer: int
    vae: int
    native_size: int
    transformer_dim: int

    @property
    def all_parts(self) -> int:
        """Everything resident."""
        return self.text_encoder + self.transformer + self.vae

    @property
    def largest_part(self) -> int:
        """The part of which a few groups at a time are on the card when they are streamed."""
        return max(self.text_encoder, self.transformer, self.vae)

    def work(self, bytes_at_1024: int) -> int:
        """Working memory, scaled from Z-Image-Turbo (width 3840) at 1024x1024."""
        pixels = self.native_size**2 / _NATIVE_PIXELS_OF_WORK
        return int(bytes_at_1024 * pixels * self.transformer_dim / 3840)


def choose_device(wanted: str) -> torch.device:
    """Return the device to draw on; `auto` is the first card, else Apple's, else the CPU.

    Raises: ConfigError naming what is wrong with the wish.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        if torch.version.cuda is not None and Path("/dev/nvidia0").exists():
            log.warning(
                "there is an NVIDIA card that torch cannot use, so drawing is slow: %s", _why_no_card()
            )
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"the device {wanted!r} is unknown; use auto, cuda, cuda:1, mps or cpu") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"the device is set to {wanted} and torch sees no such card; check the driver, or use auto"
            )
        device = torch.device("cuda", device.index or 0)
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"the device is set to {wanted} and there are {torch.cuda.device_count()} cards"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("the device is set to mps and torch cannot use it on this machine; use auto")
    elif device.type not in ("cpu", "mps"):
        raise ConfigError(f"the device {wanted!r} is not one that zbot draws on; use auto, cuda, mps or cpu")
    return device


def choose_dtype(wanted: str, device: torch.device, float32_bytes: int) -> torch.dtype:
    """Return bfloat16 or float32; float16 makes Z-Image's activations overflow. `float8` computes in bfloat16 around it.

    Raises: ConfigError.
    """
    if wanted == "float8":
        if reason := _why_no_fp8(device):
            raise ConfigError(
                f"ZBOT_PRECISION=fp8 needs an NVIDIA card of compute capability 8.9 or newer, and {reason}; "
                "set ZBOT_PRECISION=auto"
            )
        return torch.bfloat16
    if wanted != "auto":
        if wanted not in DTYPES:
            raise ConfigError(f"the dtype {wanted!r} cannot be used; use auto, bfloat16, float32 or float8")
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "mps":
        return torch.bfloat16
    # float32 is the faster one on most processors; a large model may only fit in half of it.
    return torch.float32 if float32_bytes * 1.2 < free_host_bytes() else torch.bfloat16


def _why_no_fp8(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.cuda is None:
        return f"the device is {device.type}"
    has = torch.cuda.get_device_capability(device)
    return None if has >= fp8.CAPABILITY else f"this one has {has[0]}.{has[1]}"


def choose_placement(wanted: str, device: torch.device, size: ModelSize, *, quantized: bool = False) -> str:
    """Return one of PLACEMENTS, the fastest that fits what is free on the device now.

    Raises: ConfigError.
    """
    if wanted != "auto" and wanted not in PLACEMENTS:
        raise ConfigError(f"the placement {wanted!r} is unknown; use auto, {', '.join(PLACEMENTS)}")
    places = _places(quantized=quantized)
    if quantized and wanted != "auto" and wanted not in places:
        raise ConfigError(
            f"the placement {wanted} moves the transformer, and one in fewer bits stays on the card; "
            f"use auto, {', '.join(places)}"
        )
    if device.type != "cuda":
        if wanted not in ("auto", "resident", "tiled"):
            raise ConfigError(
                f"the placement {wanted} needs a CUDA or ROCm card and the device is {device.type}"
            )
        return "resident" if wanted == "auto" else wanted
    if wanted != "auto":
        return wanted
    free = free_card_bytes(device)
    needs = {
        "resident": size.all_parts + size.work(_WORK_BYTES),
        "tiled": size.all_parts + size.work(_WORK_TILED_BYTES),
        "encoder_offload": size.transformer
        + size.vae
        + int(size.text_encoder * _ENCODER_FRACTION)
        + size.work(_WORK_STREAMED_BYTES),
        "group_offload": int(size.largest_part * _GROUP_FRACTION) + size.work(_WORK_STREAMED_BYTES),
    }
    return next((name for name in places if needs.get(name, 0) <= free), places[-1])


def next_smaller(placement: str, *, quantized: bool = False) -> str | None:
    """Return the next placement that needs less of the card, or None when there is none."""
    places = _places(quantized=quantized)
    following = places.index(placement) + 1 if placement in places else len(places)
    return places[following] if following < len(places) else None


def fallback(placement: str, device: torch.device, options: EngineOptions) -> str | None:
    """Return the placement to go to when this one has too little memory; None where there is nothing to choose."""
    if device.type != "cuda" or options.placement != "auto":
        return None
    return next_smaller(placement, quantized=options.is_quantized)


def _places(*, quantized: bool) -> tuple[str, ...]:
    # Quantised weights are made on the card and are not moved from it.
    return _AUTOMATIC[: _AUTOMATIC.index("encoder_offload") + 1] if quantized else _AUTOMATIC


def place(pipe: Any, placement: str, device: torch.device) -> None:
    """Put a pipeline's parts where the placement says, from wherever they are."""
    pipe.remove_all_hooks()
    _remove_group_hooks(pipe)
    if placement != "resident":
        tile_decoding(pipe.vae)
    if placement in ("resident", "tiled"):
        pipe.to(device)
    elif placement == "encoder_offload":
        # The text encoder goes first: the others may need its room.
        pipe.text_encoder.to("cpu")
        for part in (pipe.transformer, pipe.vae):
            if not getattr(
                part, "is_loaded_in_8bit", False
            ):  # these stand on the card and refuse to be moved
                part.to(device)
        _stream(pipe.text_encoder, device, offload_type="leaf_level")
    elif placement == "model_offload":
        pipe.enable_model_cpu_offload(device=device)
    elif placement == "group_offload":
        pipe.to("cpu")
        _stream(pipe.transformer, device, offload_type="block_level", num_blocks_per_group=1)
        _stream(pipe.text_encoder, device, offload_type="leaf_level")
        # Streamed, it would be used past its `forward`, where diffusers learns the order of the layers for ever.
        pipe.vae.to(device)
    else:
        pipe.to("cpu")
        pipe.enable_sequential_cpu_offload(device=device)


def tile_decoding(vae: Any) -> None:
    """Decode pictures larger than a tile in tiles: less memory, and seams that a close look may find."""
    vae.enable_tiling()
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_sample_min_size = TILE_PIXELS
    vae.tile_latent_min_size = TILE_PIXELS // scale


def free_card_bytes(device: torch.device) -> int:
    """Return what is free on the card, for this process and within its fraction."""
    free, total = torch.cuda.mem_get_info(device)
    fraction = torch.cuda.get_per_process_memory_fraction(device)
    return min(free, int(total * fraction))


def taken_card_bytes(device: torch.device) -> int:
    """Return what this process holds of the card's memory now; 0 where nobody can tell."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def free_host_bytes() -> int:
    """Return the host memory that can still be had, within a container's limit."""
    available: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
            available.append(int(limit) - used)
    except (OSError, ValueError):
        pass
    if not available and sys.platform != "win32":
        available.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(available, default=0))


def _why_no_card() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "the driver gives no reason"


def _stream(part: Any, device: torch.device, **groups: Any) -> None:
    """Keep a part in host memory and bring each group of its layers to the card just before it is used."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    on_card = device.type == "cuda"
    if on_card:
        pin(part)
    apply_group_offloading(
        part, onload_device=device, offload_device=torch.device("cpu"), use_stream=on_card, **groups
    )


def pin(part: Any, *, arena_bytes: int = ARENA_BYTES, pinned: bool = True) -> None:
    """Move a part's weights, tensor by tensor, into memory that the card can read by itself.

    Left to itself, diffusers pins a second copy of everything, and torch rounds each tensor up to a power of two: twice
    and a half of the model's size in host memory. What is pinned already it takes as it is.
    """
    arena, at = torch.empty(0, dtype=torch.uint8), 0
    for tensor in (*part.parameters(), *part.buffers()):
        if at + tensor.nbytes > arena.nbytes:
            size = max(arena_bytes, tensor.nbytes)
            arena, at = torch.empty(size, dtype=torch.uint8, pin_memory=pinned), 0
        room = arena[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        tensor.data = room.copy_(tensor.data)
        at += tensor.nbytes + -tensor.nbytes % ALIGNMENT


def _remove_group_hooks(pipe: Any) -> None:
    from diffusers.hooks.hooks import HookRegistry

    for part in (pipe.text_encoder, pipe.transformer, pipe.vae):
        for module in part.modules():
            if hasattr(module, "_diffusers_hook"):
                registry = HookRegistry.check_if_exists_or_initialize(module)
                for name in _GROUP_HOOKS:
                    registry.remove_hook(name, recurse=False)
