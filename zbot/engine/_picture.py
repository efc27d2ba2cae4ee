"""A decoded picture on its way from the card: pixels, whether they can be one, and the rows a PNG file is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zbot import png

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PendingPicture:
    """A picture whose decoding the card has been told to do; every method may be called from any thread."""

    _rgb: Tensor
    _filtered: Tensor | None
    _finite: Tensor
    _flat: Tensor
    _copied: torch.cuda.Event | None

    def wait(self) -> Pixels:
        """Wait for the card and return the pixels, uint8 [height, width, 3]. Releases the interpreter lock."""
        self._synchronize()
        return self._rgb.numpy()

    def is_finite(self) -> bool:
        """Wait for the card and tell whether every number of the latents was finite."""
        self._synchronize()
        return bool(self._finite.item())

    def is_flat(self) -> bool:
        """Wait for the card and tell whether the picture has one colour only."""
        self._synchronize()
        return bool(self._flat.item())

    def png(self, text: Mapping[str, str]) -> bytes:
        """Wait for the card and return the PNG file, the same bytes as `zbot.png.encode(self.wait(), text)`."""
        pixels = self.wait()
        return png.encode(pixels, text, filtered=None if self._filtered is None else self._filtered.numpy())

    def _synchronize(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()


def pending(image: Tensor, latents: Tensor) -> PendingPicture:
    """Begin to fetch the VAE's picture [1, 3, height, width], rounding where the pipeline rounds."""
    image = (image[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float()
    rgb = (image * 255).round().to(torch.uint8).contiguous()
    finite, flat = torch.isfinite(latents).all(), (rgb == rgb[0, 0]).all()
    if not rgb.is_cuda:
        return PendingPicture(_rgb=rgb, _filtered=None, _finite=finite, _flat=flat, _copied=None)
    # The card filters in the time that a processor's core takes for one row of the picture.
    on_host = [_begin_fetch(tensor) for tensor in (rgb, filter_rows(rgb), finite, flat)]
    copied = torch.cuda.Event(blocking=True)
    copied.record()
    return PendingPicture(
        _rgb=on_host[0], _filtered=on_host[1], _finite=on_host[2], _flat=on_host[3], _copied=copied
    )


def filter_rows(rgb: Tensor) -> Tensor:
    """Return uint8 [height, 1 + 3 * width]: what `zbot.png` makes of the same pixels [height, width, 3]."""
    here = rgb.flatten(1)
    above, left, above_left = (torch.zeros_like(here) for _ in range(3))
    above[1:] = here[:-1]
    left[:, 3:] = here[:, :-3]
    above_left[1:, 3:] = here[:-1, :-3]
    to_left, to_above = (side.to(torch.int16) - above_left for side in (above, left))
    to_above_left = (to_left + to_above).abs_()
    to_left, to_above = to_left.abs_(), to_above.abs_()
    nearest = torch.where(to_above <= to_above_left, above, above_left)
    nearest = torch.where(to_left <= torch.minimum(to_above, to_above_left), left, nearest)
    candidates = (
        (png.SUB, here - left),
        (png.UP, here - above),
        (png.AVERAGE, here - ((left & above) + ((left ^ above) >> 1))),
        (png.PAETH, here - nearest),
    )
    best = torch.empty(here.shape[0], 1 + here.shape[1], dtype=torch.uint8, device=rgb.device)
    least = torch.full((here.shape[0], 1), torch.iinfo(torch.int32).max, dtype=torch.int32, device=rgb.device)
    for number, candidate in candidates:
        size = torch.minimum(candidate, -candidate).sum(dim=1, keepdim=True, dtype=torch.int32)
        better = size < least
        least = torch.minimum(size, least)
        best[:, :1].masked_fill_(better, number)
        torch.where(better, candidate, best[:, 1:], out=best[:, 1:])
    return best


def _begin_fetch(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
