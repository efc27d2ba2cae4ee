"""Draws with a loaded ZImagePipeline at the card's limit: the same arithmetic, arranged so that nothing is done twice.

What is arranged differently from `ZImagePipeline.__call__` (guidance 0, one picture), and why it is the same sum:

- The caption's embedder and refiner do not see the timestep: they run once per prompt, not once per step.
- The modulation vectors depend on the timestep alone: they are computed once per number of steps.
- Rotary angles and position ids depend on size and caption length alone: computed once for each, in real numbers.
- Query, key and value (and the two halves of the gated feed-forward) are one matrix product each. The joined weight is
  the only copy: the modules' own weights become views into it, so the stock pipeline keeps working.
- The last block computes nothing for the caption but its keys and values: nobody reads more of it.
- Of the text encoder only the needed tokens are run, and not the last layer, whose result nobody reads.
- A LoRA is added to the joined products; adapters of other kinds run as their own modules do.
- The host never waits for the card inside the loop, except that it stays at most two steps ahead of it, so that
  progress is true and a cancelled job stops within two steps.

Nothing here is compiled per shape, so a new size or caption length costs next to nothing. Not thread-safe: draw from
one thread at a time. `PendingPicture.wait` may be called from any thread.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zbot.engine import _fp8 as fp8
from zbot.engine import _vae
from zbot.engine._blocks import Block, run_blocks, unsupported_block
from zbot.engine._encoder import MAX_TOKENS, Encoder
from zbot.engine._kernels import Kernels, TorchKernels, kernels_for
from zbot.engine._picture import PendingPicture, pending
from zbot.engine._plan import (
    PATCH,
    PATCH_SIDE,
    TOKEN_MULTIPLE,
    Cache,
    Layout,
    Schedule,
    make_layout,
    make_schedule,
    rope,
    shift,
)

# What a person's last prompts cost to keep: a caption of 64 tokens is 0.8 MB, the longest 6.5 MB.
CAPTION_CACHE_BYTES = 128 * 2**20
# Two megabytes each at 1024x1024; the aspect list at four usual caption lengths fits.
LAYOUT_CACHE_ENTRIES = 48
# cuDNN's kernel is the fastest on Hopper where it applies; the others follow in order of speed.
ATTENTION_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class OnStep(Protocol):
    """Hears of each finished step; raising stops the drawing, and the next one works."""

    def __call__(self, step: int, steps: int, latents: Tensor, /) -> None:
        """Take the number of the finished step, 1 to `steps`, and the latents [1, channels, height/8, width/8].

        Work done here on the latents runs beside the next step and delays nothing, if the result is taken to the
        host before returning.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Caption:
    """A prompt as the transformer reads it."""

    prompt_embeds: Tensor
    """[tokens, 2560], what `ZImagePipeline.encode_prompt` returns for one prompt."""
    refined: Tensor
    """[tokens rounded up to 32, dim]: embedded, padded and through the context refiner."""

    @property
    def tokens(self) -> int:
        """Tell the number of tokens, at most 512."""
        return self.prompt_embeds.shape[0]

    @property
    def num_bytes(self) -> int:
        """Tell the device memory it holds."""
        return self.prompt_embeds.nbytes + self.refined.nbytes


def unsupported(pipe: Any) -> str | None:
    """Say in a few words why `FastPath` cannot draw with this pipeline, or return None if it can.

    It needs everything on one device in one floating-point type: offloaded, quantised and foreign models are for the
    stock pipeline.
    """
    transformer = pipe.transformer
    devices = {str(parameter.device) for part in (transformer, pipe.vae) for parameter in part.parameters()}
    if len(devices) > 1 or "meta" in devices:
        return "the model is spread over several devices"
    if any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in (transformer, pipe.vae)):
        return "offloading hooks are set"
    dtypes = {parameter.dtype for parameter in transformer.parameters()}
    if dtypes - {fp8.DTYPE} not in ({torch.bfloat16}, {torch.float32}):
        return "the transformer is not in bfloat16 or float32 throughout"
    scheduler = pipe.scheduler
    if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler" or scheduler.config.stochastic_sampling:
        return "the diffusion scheduler is not plain flow-matching Euler"
    if PATCH not in transformer.all_x_embedder or transformer.config.siglip_feat_dim is not None:
        return "a transformer of another kind"
    for block in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
        if reason := unsupported_block(block):
            return reason
    return _vae.unsupported_vae(pipe.vae)


class FastPath:
    """Draws pictures with the parts of a loaded pipeline.

    ```
    if reason := unsupported(pipe): ...use the pipeline itself
    path = FastPath(pipe)
    latents = path.denoise(path.caption(prompt), seed=7, width=1024, height=1024, steps=8, on_step=on_step)
    picture = path.decode(latents)          # returns at once; the next denoise may begin
    rgb = picture.wait()                    # in any thread
    ```

    Call `reset` after anything that changes the weights: LoRA loaded, unloaded or given another strength.
    """

    def __init__(self, pipe: Any, *, kernels: Kernels | None = None) -> None:
        """Take the pipeline over: join weights in place, turn the VAE's decoder channels-last on a card.

        Raises ValueError if `unsupported(pipe)`.
        """
        if reason := unsupported(pipe):
            raise ValueError(f"the fast path cannot draw with this pipeline: {reason}")
        self._pipe = pipe
        self._transformer = pipe.transformer
        self._device: torch.device = pipe.transformer.x_pad_token.device
        self._dtype: torch.dtype = pipe.transformer.x_pad_token.dtype
        self._pixels_per_token = int(pipe.vae_scale_factor) * PATCH_SIDE
        self._scheduler = copy.deepcopy(pipe.scheduler)
        self.kernels = kernels_for(self._device) if kernels is None else kernels
        self._encoder = Encoder(pipe, self.kernels)
        self._captions = Cache[Caption](CAPTION_CACHE_BYTES, lambda caption: caption.num_bytes)
        self._layouts = Cache[Layout](LAYOUT_CACHE_ENTRIES, lambda layout: 1)
        self._schedules = Cache[Schedule](8, lambda schedule: 1)
        self._on_card = self._device.type == "cuda"
        # Decoding goes first where both want the card: the finished picture is the one somebody waits for.
        self._beside = torch.cuda.Stream(self._device, priority=-1) if self._on_card else None
        self._reporting = torch.cuda.Stream(self._device, priority=-1) if self._on_card else None
        if self._on_card and not isinstance(self.kernels, TorchKernels):
            pipe.vae.decoder.to(memory_format=torch.channels_last)
        self.reset()
        if self._on_card:
            # A picture of 512x512 builds every Triton kernel, also that of its own attention, or loads it from Triton's
            # cache: once this returns, the first picture that somebody waits for is not late.
            side = 32 * self._pixels_per_token
            self.draw("", seed=0, width=side, height=side, steps=1).wait()

    def reset(self) -> None:
        """Forget all that was computed from the weights, and look again at which layers carry adapters."""
        transformer = self._transformer
        self._noise_refiner = [Block(block) for block in transformer.noise_refiner]
        self._context_refiner = [Block(block) for block in transformer.context_refiner]
        self._layers = [Block(block) for block in transformer.layers]
        self._captions.clear()
        self._schedules.clear()

    @torch.inference_mode()
    def caption(self, prompt: str) -> Caption:
        """Return the prompt as the transformer reads it; the same object again while it is remembered.

        What the tokenizer makes more of than 512 tokens is cut, as in the pipeline.
        """
        return self._captions.get(prompt, lambda: self._refine(self._encoder.encode(prompt)))

    def knows(self, prompt: str) -> bool:
        """Tell whether `caption(prompt)` would run nothing."""
        return prompt in self._captions

    @torch.inference_mode()
    def denoise(
        self,
        caption: Caption,
        *,
        seed: int,
        width: int,
        height: int,
        steps: int = 8,
        on_step: OnStep | None = None,
        on_queued: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Return the finished latents, float32 [1, channels, height/8, width/8] on the device.

        The noise is drawn on the CPU from `seed`, exactly as the pipeline draws it with a CPU generator, so it is the
        same on every card. With `on_step` it returns when the last step is finished, else as soon as all are queued.
        `on_queued` hears of the latents before that, while the last step is under way: what it has the card do with
        them begins without a pause.

        Raises: ValueError for a size or number of steps that the model cannot do; whatever `on_step` raises.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        layout = self._layout(width, height, caption.refined.shape[0])
        schedule = self._schedule(steps, layout)
        tokens = self._noise_tokens(seed, layout)
        ahead: tuple[int, Tensor, Any] | None = None
        with sdpa_kernel(ATTENTION_ORDER, set_priority=True) if self._on_card else nullcontext():
            for step in range(steps):
                velocity = self._velocity(tokens, caption, schedule, step, layout)
                tokens = tokens + schedule.dt[step] * -velocity.float()
                if on_step is not None:
                    finished = self._mark()
                    if ahead is not None:
                        self._report(on_step, steps, layout, ahead)
                    ahead = (step + 1, tokens, finished)
        latents = layout.latents(tokens).contiguous()
        if on_queued is not None:
            on_queued(latents)
        if on_step is not None and ahead is not None:
            self._report(on_step, steps, layout, ahead)
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> PendingPicture:
        """Begin to decode latents in a second stream, beside whatever is drawn next."""
        if self._beside is None:
            return pending(self._decode(latents), latents)
        self._beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._beside):
            picture = pending(self._decode(latents), latents)
        latents.record_stream(self._beside)
        return picture

    def draw(
        self,
        prompt: str,
        *,
        seed: int,
        width: int,
        height: int,
        steps: int = 8,
        on_step: OnStep | None = None,
    ) -> PendingPicture:
        """Do `caption`, `denoise` and `decode` of one picture."""
        pictures: list[PendingPicture] = []
        self.denoise(
            self.caption(prompt),
            seed=seed,
            width=width,
            height=height,
            steps=steps,
            on_step=on_step,
            on_queued=lambda latents: pictures.append(self.decode(latents)),
        )
        return pictures[0]

    def warm_up(self, sizes: Iterable[tuple[int, int]], *, steps: int = 8) -> Iterator[object]:
        """Do what the first picture of each (width, height) would wait for, a bit at each item.

        The libraries choose and load their kernels at the first use of a shape: done here, when nobody waits, the
        first picture of a size and the first prompt of a length take as long as the second. Stop iterating to leave
        the rest.
        """
        yield from self._encoder.record()
        for width, height in sizes:
            latents = self.denoise(self.caption(""), seed=0, width=width, height=height, steps=1)
            self.decode(latents).wait()
            self._schedule(steps, self._layout(width, height, TOKEN_MULTIPLE))
            yield width, height
            if self._on_card:
                yield from self._warm_up_attention(width, height)

    @torch.inference_mode()
    def _warm_up_attention(self, width: int, height: int) -> Iterator[object]:
        # cuDNN plans anew for each number of tokens, and that is most of what a new caption length costs.
        side = self._pixels_per_token
        tokens = (width // side) * (height // side)
        tokens += -tokens % TOKEN_MULTIPLE
        block = self._layers[0]
        head_dim = self._transformer.dim // block.heads
        for caption_tokens in range(TOKEN_MULTIPLE, MAX_TOKENS + 1, TOKEN_MULTIPLE):
            for rows in (caption_tokens, tokens + caption_tokens):
                qkv = torch.zeros(rows, 3 * block.heads * head_dim, device=self._device, dtype=self._dtype)
                with sdpa_kernel(ATTENTION_ORDER, set_priority=True):
                    self.kernels.attention(qkv, block.heads)
            yield width, height, caption_tokens

    # What is computed once

    def _refine(self, prompt_embeds: Tensor) -> Caption:
        transformer = self._transformer
        prompt_embeds = prompt_embeds.to(self._device)
        tokens = prompt_embeds.shape[0]
        padding = -tokens % TOKEN_MULTIPLE
        embedded = transformer.cap_embedder(prompt_embeds)
        x = torch.cat([embedded, transformer.cap_pad_token.expand(padding, -1).to(embedded.dtype)])
        ids = torch.zeros(tokens + padding, 3, dtype=torch.int32, device=self._device)
        ids[:, 0] = torch.arange(1, tokens + padding + 1, device=self._device)
        refined = run_blocks(self._context_refiner, self.kernels, x, rope(transformer, ids), None)
        return Caption(prompt_embeds=prompt_embeds, refined=refined)

    def _layout(self, width: int, height: int, caption_tokens: int) -> Layout:
        side = self._pixels_per_token
        rows, columns = height // side, width // side
        limits = self._transformer.config.axes_lens
        if height % side or width % side or not rows or not columns:
            raise ValueError(f"width and height must be multiples of {side}, not {width}x{height}")
        if rows > limits[1] or columns > limits[2]:
            raise ValueError(f"at most {limits[2] * side}x{limits[1] * side} pixels, not {width}x{height}")
        return self._layouts.get(
            (rows, columns, caption_tokens),
            lambda: make_layout(self._transformer, rows, columns, caption_tokens),
        )

    def _schedule(self, steps: int, layout: Layout) -> Schedule:
        mu = shift(layout.image_tokens, self._scheduler.config)
        return self._schedules.get(
            (steps, mu),
            lambda: make_schedule(
                self._transformer, self._scheduler, steps, mu, self._noise_refiner, self._layers
            ),
        )

    # One step

    def _velocity(
        self, tokens: Tensor, caption: Caption, schedule: Schedule, step: int, layout: Layout
    ) -> Tensor:
        """Return the transformer's answer [image tokens, patch numbers] to float32 tokens of that shape."""
        transformer = self._transformer
        x = transformer.all_x_embedder[PATCH](tokens.to(self._dtype))
        if layout.padding:
            x = torch.cat([x, transformer.x_pad_token.expand(layout.padding, -1)])
        x = run_blocks(self._noise_refiner, self.kernels, x, layout.image_rope, schedule.refiner[step])
        x = torch.cat([x, caption.refined])
        x = run_blocks(self._layers, self.kernels, x, layout.rope, schedule.layers[step], layout.image_tokens)
        last = transformer.all_final_layer[PATCH]
        return last.linear(last.norm_final(x) * schedule.final[step])

    def _noise_tokens(self, seed: int, layout: Layout) -> Tensor:
        rng = torch.Generator("cpu").manual_seed(seed)
        channels = int(self._transformer.in_channels)
        shape = (1, channels, layout.rows * PATCH_SIDE, layout.columns * PATCH_SIDE)
        noise = torch.randn(shape, generator=rng, dtype=torch.float32).to(self._device)
        return layout.patches(noise)

    def _mark(self) -> Any:
        if not self._on_card:
            return None
        finished = torch.cuda.Event(blocking=True)
        finished.record()
        return finished

    def _report(self, on_step: OnStep, steps: int, layout: Layout, ahead: tuple[int, Tensor, Any]) -> None:
        step, tokens, finished = ahead
        if self._reporting is None:
            on_step(step, steps, layout.latents(tokens))
            return
        finished.synchronize()
        # In a stream of its own: elsewhere the callback's work would queue up behind the next step, or the decoding.
        with torch.cuda.stream(self._reporting):
            on_step(step, steps, layout.latents(tokens))

    def _decode(self, latents: Tensor) -> Tensor:
        """Return the picture [1, 3, height, width], about -1 to 1; in tiles if the VAE is told so."""
        vae = self._pipe.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        if vae.use_tiling and max(scaled.shape[-2:]) > vae.tile_latent_min_size:
            return vae.decode(scaled, return_dict=False)[0]
        if self._on_card:
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        return _vae.decode(vae, self.kernels, scaled)
