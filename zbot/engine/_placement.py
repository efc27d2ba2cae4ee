"""Decides where the parts of the model lie in memory, from what is free, and puts them there."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zbot.errors import ConfigError

log = logging.getLogger(__name__)

# From fastest to smallest. `tiled` is resident with the picture decoded in tiles.
PLACEMENTS = ("resident", "tiled", "model_offload", "group_offload", "sequential_offload")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

TILE_PIXELS = 512  # the VAE's own tile is 1024, which changes nothing at 1024x1024

# Working memory at 1024x1024 beside bf16 weights: 21.7 GiB peak less 19.1 GiB of weights, measured on one H200; with
# the decode in tiles the denoising is what is left. Margins for the context and for other programs included.
_WORK_BYTES = int(4.0 * 2**30)
_WORK_TILED_BYTES = int(2.2 * 2**30)
_NATIVE_PIXELS_OF_WORK = 1024 * 1024
_GROUP_FRACTION = 0.25  # of the largest part: a few blocks and their prefetched successors


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
        """What model offload has on the card at its worst moment."""
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
    """Return bfloat16 or float32; float16 makes Z-Image's activations overflow.

    Raises: ConfigError.
    """
    if wanted != "auto":
        if wanted not in DTYPES:
            raise ConfigError(f"the dtype {wanted!r} cannot be used; use auto, bfloat16 or float32")
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "mps":
        return torch.bfloat16
    # float32 is the faster one on most processors; a large model may only fit in half of it.
    return torch.float32 if float32_bytes * 1.2 < free_host_bytes() else torch.bfloat16


def choose_placement(wanted: str, device: torch.device, size: ModelSize) -> str:
    """Return one of PLACEMENTS, the fastest that fits what is free on the device now.

    Raises: ConfigError.
    """
    if wanted != "auto" and wanted not in PLACEMENTS:
        raise ConfigError(f"the placement {wanted!r} is unknown; use auto, {', '.join(PLACEMENTS)}")
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
        "model_offload": size.largest_part + size.work(_WORK_TILED_BYTES),
        "group_offload": int(size.largest_part * _GROUP_FRACTION) + size.work(_WORK_TILED_BYTES),
    }
    return next((name for name, needed in needs.items() if needed <= free), "sequential_offload")


def next_smaller(placement: str) -> str | None:
    """Return the next placement that needs less of the card, or None when there is none."""
    index = PLACEMENTS.index(placement)
    return PLACEMENTS[index + 1] if index + 1 < len(PLACEMENTS) else None


def place(pipe: Any, placement: str, device: torch.device) -> None:
    """Put a pipeline's parts where the placement says, from wherever they are."""
    pipe.remove_all_hooks()
    if placement != "resident":
        tile_decoding(pipe.vae)
    if placement in ("resident", "tiled"):
        pipe.to(device)
    elif placement == "model_offload":
        pipe.enable_model_cpu_offload(device=device)
    elif placement == "group_offload":
        pipe.to("cpu")
        _offload_groups(pipe, device)
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


def _offload_groups(pipe: Any, device: torch.device) -> None:
    # The transformer streams its blocks; the text encoder and the VAE are used once a picture and go leaf by leaf.
    from diffusers.hooks.group_offloading import apply_group_offloading

    shared: dict[str, Any] = {
        "onload_device": device,
        "offload_device": torch.device("cpu"),
        "use_stream": True,
    }
    apply_group_offloading(pipe.transformer, offload_type="block_level", num_blocks_per_group=1, **shared)
    apply_group_offloading(pipe.text_encoder, offload_type="leaf_level", **shared)
    apply_group_offloading(pipe.vae, offload_type="leaf_level", **shared)
