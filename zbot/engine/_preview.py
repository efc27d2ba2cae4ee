"""A small picture of the latents while they are denoised: one linear map, no decoder."""

import io
import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

MAX_SIDE_PIXELS = 256
JPEG_QUALITY = 70

# Rows are latent channels, columns red, green and blue in -1..1. Flux's VAE: the widely published linear fit.
_FLUX = (
    (-0.0346, 0.0244, 0.0681),
    (0.0034, 0.0210, 0.0687),
    (0.0275, -0.0668, -0.0433),
    (-0.0174, 0.0160, 0.0617),
    (0.0859, 0.0721, 0.0329),
    (0.0004, 0.0383, 0.0115),
    (0.0405, 0.0861, 0.0915),
    (-0.0236, -0.0185, -0.0259),
    (-0.0245, 0.0250, 0.1180),
    (0.1008, 0.0755, -0.0421),
    (-0.0515, 0.0201, 0.0011),
    (0.0428, -0.0012, -0.0036),
    (0.0817, 0.0765, 0.0749),
    (-0.1264, -0.0522, -0.1103),
    (-0.0280, -0.0881, -0.0499),
    (-0.1262, -0.0982, -0.0778),
)
_FLUX_BIAS = (-0.0329, -0.0718, -0.0851)
# The tiny model's VAE: least squares over 18 drawn pictures of it, their latents and those of encoding them again;
# root mean square error 0.15 where the pictures' own spread is 0.64.
_TINY = (
    (-0.1797, 0.1257, -0.0377),
    (0.0447, 0.1171, 0.0510),
    (-0.0155, 0.3805, 0.2421),
    (0.2279, 0.2672, 0.0017),
    (0.0165, -0.0619, 0.0166),
    (0.2798, 0.1581, -0.0084),
    (-0.0425, 0.2639, -0.4035),
    (0.0424, -0.1219, -0.0161),
)
_TINY_BIAS = (0.3294, 0.4360, 0.1371)
# By the number of latent channels; a model with another number has no preview.
MAPS: dict[int, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    16: (_FLUX, _FLUX_BIAS),
    8: (_TINY, _TINY_BIAS),
}


class Preview:
    """Makes previews for one model, at most one each `every_s` seconds."""

    def __init__(self, channels: int, device: torch.device, *, every_s: float) -> None:
        self._every_s = every_s
        self._next_at = 0.0
        self._map: tuple[Tensor, Tensor] | None = None
        if channels in MAPS:
            factors, bias = MAPS[channels]
            self._map = (torch.tensor(factors, device=device), torch.tensor(bias, device=device))
        self._last: Tensor | None = None

    def begin(self) -> None:
        """Forget the picture before."""
        self._last = None

    def after_step(self, sigma: float, next_sigma: float, latents: Tensor) -> bytes | None:
        """Return a JPEG of what the latents [1, channels, height/8, width/8] will become, if one is due.

        With the latents of two steps the flow is known, and the end of it shows far more than the noisy latents:
        velocity = (x' - x) / (sigma' - sigma), end = x' - sigma' * velocity. So the first step shows nothing yet.
        """
        before, self._last = self._last, latents
        now = time.monotonic()
        if self._map is None or before is None or now < self._next_at:
            return None
        self._next_at = now + self._every_s
        latents = latents - next_sigma * (latents - before) / (next_sigma - sigma)
        return _jpeg(_to_rgb(latents, *self._map))


def _to_rgb(latents: Tensor, factors: Tensor, bias: Tensor) -> Any:
    rgb = torch.einsum("chw,cr->rhw", latents[0].float(), factors) + bias[:, None, None]
    scale = min(MAX_SIDE_PIXELS / max(rgb.shape[1:]), 2.0)
    size = [max(1, round(side * scale)) for side in rgb.shape[1:]]
    rgb = interpolate(rgb[None], size=size, mode="bilinear", align_corners=False)[0]
    return ((rgb / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _jpeg(rgb: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
