"""Draws with ZImagePipeline as it is: every placement, every kind of weights, guidance too."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zbot import png

MAX_PROMPT_TOKENS = 512
CAPTIONS_KEPT = 32  # at most 2.6 MB each

OnLatents = Callable[[int, int, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StockPicture:
    """A decoded picture."""

    _rgb: Any
    _finite: bool
    _flat: bool

    def wait(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the pixels, uint8 [height, width, 3]."""
        return self._rgb

    def is_finite(self) -> bool:
        """Tell whether every number of the latents was finite."""
        return self._finite

    def is_flat(self) -> bool:
        """Tell whether the picture has one colour only."""
        return self._flat

    def png(self, text: Mapping[str, str]) -> bytes:
        """Return the PNG file with these text chunks."""
        return png.encode(self._rgb, text)


class StockPath:
    """The pipeline behind the same calls as `_fast.FastPath`; call from one thread."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._captions: OrderedDict[str, Tensor] = OrderedDict()

    def reset(self) -> None:
        """Forget what was computed from the weights."""
        self._captions.clear()

    @torch.inference_mode()
    def caption(self, prompt: str) -> Tensor:
        """Return the prompt's embedding [tokens, width]; a remembered one is bit-identical to a fresh one."""
        if prompt not in self._captions:
            # A string, never a list: the pipeline writes the chat template into a list it is given.
            embeds, _ = self._pipe.encode_prompt(
                prompt, do_classifier_free_guidance=False, max_sequence_length=MAX_PROMPT_TOKENS
            )
            self._captions[prompt] = embeds[0]
            if len(self._captions) > CAPTIONS_KEPT:
                self._captions.popitem(last=False)
        self._captions.move_to_end(prompt)
        return self._captions[prompt]

    @torch.inference_mode()
    def denoise(
        self,
        caption: Tensor,
        *,
        seed: int,
        width: int,
        height: int,
        steps: int = 8,
        guidance_scale: float = 0.0,
        on_step: OnLatents | None = None,
    ) -> Tensor:
        """Return the finished latents, float32 [1, channels, height/8, width/8]."""
        pipe, ahead = self._pipe, list[tuple[int, Tensor, Any]]()

        def report() -> None:
            step, latents, finished = ahead.pop()
            if finished is not None:
                finished.synchronize()
            if on_step is not None:
                on_step(step, steps, latents)

        def after_step(
            _pipe: Any, index: int, _timestep: Any, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            # On a card the host runs ahead: a step is reported once the next one is queued, and only when it is
            # truly finished, so the progress is true and the card never waits for it.
            finished = None
            if tensors["latents"].device.type == "cuda":
                finished = torch.cuda.Event(blocking=True)
                finished.record()
                if ahead:
                    report()
            ahead.append((index + 1, tensors["latents"], finished))
            if finished is None:
                report()
            return {}

        try:
            latents = pipe(
                prompt_embeds=[caption],
                negative_prompt_embeds=[self.caption("")] if guidance_scale > 0 else None,
                width=width,
                height=height,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                # A CPU generator gives the same noise on every card.
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=after_step,
                output_type="latent",
                return_dict=False,
            )[0]
        except BaseException:
            # Stopped in the middle, an offloaded transformer stays on the card, beside the text encoder of the next.
            pipe.maybe_free_model_hooks()
            raise
        if ahead:
            report()
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> StockPicture:
        """Decode as the pipeline does, to the same bytes."""
        pipe, vae = self._pipe, self._pipe.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(scaled, return_dict=False)[0]
        image = (image[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float()
        rgb = (image * 255).round().to(torch.uint8).contiguous()
        picture = StockPicture(
            _rgb=rgb.cpu().numpy(),
            _finite=bool(torch.isfinite(latents).all().item()),
            _flat=bool((rgb == rgb[0, 0]).all().item()),
        )
        pipe.maybe_free_model_hooks()
        return picture
