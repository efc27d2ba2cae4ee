"""What a drawing needs that depends on its size, caption length or number of steps alone, computed once for each."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from zbot.engine._blocks import Block

Value = TypeVar("Value")

# Captions and pictures are padded to a multiple of this many tokens, and the pad tokens take part (SEQ_MULTI_OF).
TOKEN_MULTIPLE = 32
PATCH = "2-1"
PATCH_SIDE = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """All that depends on the timesteps alone, one entry per step."""

    dt: list[Tensor]
    refiner: list[Tensor]
    layers: list[Tensor]
    final: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """All that depends on picture size and caption length alone; rows and columns are of image tokens."""

    rows: int
    columns: int
    image_tokens: int
    padding: int
    image_rope: tuple[Tensor, Tensor]
    rope: tuple[Tensor, Tensor]

    def patches(self, latents: Tensor) -> Tensor:
        """Return latents [1, channels, 2 * rows, 2 * columns] as tokens [rows * columns, 4 * channels]."""
        parts = latents.view(-1, self.rows, PATCH_SIDE, self.columns, PATCH_SIDE)
        return parts.permute(1, 3, 2, 4, 0).reshape(self.image_tokens, -1)

    def latents(self, patches: Tensor) -> Tensor:
        """Return tokens as latents again."""
        parts = patches.view(self.rows, self.columns, PATCH_SIDE, PATCH_SIDE, -1).permute(4, 0, 2, 1, 3)
        return parts.reshape(1, -1, self.rows * PATCH_SIDE, self.columns * PATCH_SIDE)


def make_layout(transformer: Any, rows: int, columns: int, caption_tokens: int) -> Layout:
    """Return the layout of a picture of rows x columns tokens beside a padded caption."""
    device = transformer.x_pad_token.device
    tokens = rows * columns
    padding = -tokens % TOKEN_MULTIPLE
    ids = torch.zeros(tokens + padding + caption_tokens, 3, dtype=torch.int32, device=device)
    # The picture stands one past its caption on the first axis; its pad tokens stand at the origin.
    ids[:tokens, 0] = caption_tokens + 1
    ids[:tokens, 1] = torch.arange(rows, device=device).repeat_interleave(columns)
    ids[:tokens, 2] = torch.arange(columns, device=device).repeat(rows)
    ids[tokens + padding :, 0] = torch.arange(1, caption_tokens + 1, device=device)
    cos, sin = rope(transformer, ids)
    image = slice(0, tokens + padding)
    return Layout(
        rows=rows,
        columns=columns,
        image_tokens=tokens,
        padding=padding,
        image_rope=(cos[image].contiguous(), sin[image].contiguous()),
        rope=(cos, sin),
    )


def make_schedule(
    transformer: Any, scheduler: Any, steps: int, mu: float, refiner: Sequence[Block], layers: Sequence[Block]
) -> Schedule:
    """Return the steps' sizes and every block's modulation, with the sigmas of the stock pipeline."""
    sigmas = [float(sigma) for sigma in torch.linspace(1.0, 1 / steps, steps)]
    scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=transformer.x_pad_token.device)
    schedule = Schedule(dt=[], refiner=[], layers=[], final=[])
    for step in range(steps):
        timestep = (1000 - scheduler.timesteps[step].expand(1)) / 1000
        embedded = transformer.t_embedder(timestep * transformer.t_scale).to(transformer.x_pad_token.dtype)
        schedule.dt.append(scheduler.sigmas[step + 1] - scheduler.sigmas[step])
        schedule.refiner.append(torch.stack([block.modulation(embedded) for block in refiner]))
        schedule.layers.append(torch.stack([block.modulation(embedded) for block in layers]))
        schedule.final.append(1.0 + transformer.all_final_layer[PATCH].adaLN_modulation(embedded))
    return schedule


def rope(transformer: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines [tokens, head_dim / 2] of position ids [tokens, 3]."""
    angles = transformer.rope_embedder(ids)
    return angles.real.contiguous(), angles.imag.contiguous()


def shift(image_tokens: int, config: Any) -> float:
    """Return diffusers' mu of a picture of that many tokens; 0 for Z-Image-Turbo, whose shift is fixed."""
    if not config.use_dynamic_shifting:
        return 0.0
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (last - first)
    return image_tokens * slope + low - slope * first


class Cache(Generic[Value]):
    """A least-recently-used dictionary with a bound on the sum of its entries' weights."""

    def __init__(self, limit: int, weigh: Callable[[Value], int]) -> None:
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._limit = limit
        self._weigh = weigh
        self._weight = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the entry, made if there is none, and drop the longest unused ones over the limit."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        value = make()
        self._entries[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._limit and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self._weight -= self._weigh(oldest)
        return value

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self._weight = 0
