"""A loaded Z-Image draws: encode the prompt, denoise, decode, write the PNG, and make room where memory is short."""

# diffusers exports through a lazy module that pyright cannot see, and is partly untyped.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from zbot import images
from zbot.engine import Drawn, ModelCard, _placement
from zbot.engine import _fast as fast
from zbot.engine._faults import (
    Result,
    attempt,
    first_line,
    is_out_of_memory,
    is_poisoned,
    release_memory,
)
from zbot.engine._lora import Loras
from zbot.engine._options import EngineOptions
from zbot.engine._preview import Preview
from zbot.engine._prompt import token_reader, unused_tail
from zbot.engine._stock import MAX_PROMPT_TOKENS, StockPath
from zbot.errors import GenerationError, NonFiniteOutput, OutOfMemory, ZBotError
from zbot.request import ASPECTS, ImageRequest, size_for

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, bytes | None], None]

# Patience on a processor is reckoned with this speed, well below what any of today's reaches in float32.
SLOW_CPU_FLOPS = 2e10
PATIENCE = 3.0


@dataclass(slots=True, kw_only=True, eq=False)
class Denoised:
    """A picture that only has to be fetched from the card, checked and written."""

    request: ImageRequest
    picture: Any  # of a path's `decode`
    card: ModelCard
    unused_prompt: str
    began_at: float
    lora_sha256: str  # "" for a picture without


class Painter:
    """A loaded model; `denoise` and `warm_up` from one thread, `finish` from one other."""

    def __init__(self, pipe: Any, card: ModelCard, device: torch.device, options: EngineOptions) -> None:
        self._pipe = pipe
        self._device = device
        self._options = options
        self._placement = card.placement
        self._finished_at = 0.0  # monotonic, of the last finished picture
        self._stock = StockPath(pipe)
        self._loras = Loras(
            pipe,
            dtype=pipe.vae.dtype,
            directory=options.lora_dir,
            files=options.lora_files,
            on_change=self._forget,
        )
        self._path: Any
        self._path, draws_with = self._choose_path()
        self._read_prompt = token_reader(pipe.tokenizer, MAX_PROMPT_TOKENS)
        self._preview = (
            Preview(int(pipe.transformer.config.in_channels), device, every_s=options.preview_every_s)
            if options.preview
            else None
        )
        self._scheduler = copy.deepcopy(pipe.scheduler)
        self._parameters = sum(parameter.numel() for parameter in pipe.transformer.parameters())
        self._warming: Iterator[object] | None = None
        release_memory()  # what joining weights left over
        self.card = replace(
            card,
            memory_bytes=_placement.taken_card_bytes(device),
            options={
                "path": draws_with,
                "attention": options.attention,
                "quantization": options.quantization.partition(":")[0],
                **({"lossy": "matrix products in fp8"} if options.dtype == "float8" else {}),
                "threads": str(torch.get_num_threads()) if device.type == "cpu" else "",
            },
        )

    def _choose_path(self) -> tuple[Any, str]:
        if (
            self._options.compile == "off"
            or self._options.attention != "auto"
            or self._options.quantization != "none"
        ):
            return self._stock, "stock"
        if reason := fast.unsupported(self._pipe):
            log.info("drawing with the stock pipeline: %s", reason)
            return self._stock, "stock"
        path = fast.FastPath(self._pipe)
        return path, f"fast-{path.kernels.name}"

    def _forget(self) -> None:
        self._path.reset()

    def allowance_s(self, request: ImageRequest) -> float:
        """Return how long one step may take on this device before it must be thought to hang."""
        if self._device.type != "cpu":
            return 0.0
        tokens = request.width * request.height / 256 + MAX_PROMPT_TOKENS
        return PATIENCE * 2 * self._parameters * tokens / SLOW_CPU_FLOPS

    def warm_up(self) -> Iterator[object]:
        """Make ready for every size of the aspect list, one at each item; draw nothing that anyone sees."""
        if self._device.type != "cuda" or self._path is self._stock:
            return
        sizes = [size_for(aspect, self.card.native_size) for aspect in ASPECTS]
        self._warming = self._path.warm_up(sizes)
        # Not `yield from`: that would hold the path, and with it the weights, after `_make_room` gave it up.
        while self._warming is not None:
            try:
                done = next(self._warming, None)
            except Exception as error:
                self._warming = None
                if is_poisoned(error):
                    raise
                if is_out_of_memory(error):
                    log.warning("too little memory to warm up: %s", first_line(error))
                else:
                    self._leave_fast_path(error)
                return
            if done is None:
                self._warming = None
                return
            yield done

    def denoise(self, request: ImageRequest, on_step: OnStep) -> Denoised:
        """Encode, denoise and begin to decode one picture.

        Raises: whatever `on_step` raises; OutOfMemory, NonFiniteOutput, EngineDead.
        """
        began_at = time.monotonic()
        drawn, said = attempt(lambda: self._latents(request, on_step))
        if drawn is None:
            self._make_room(said)
            drawn, said = attempt(lambda: self._latents(request, on_step))
        if drawn is None:
            release_memory()
            raise OutOfMemory(said, width=request.width, height=request.height)
        latents, picture, lora_sha256, path = drawn
        if picture is None:
            picture, said = attempt(lambda: self._on_path(lambda path: path.decode(latents)))
        if picture is None and not self._pipe.vae.use_tiling:
            log.warning("decoding ran out of memory (%s); decoding in tiles from now on", said)
            self._tile()
            picture, said = attempt(lambda: self._on_path(lambda path: path.decode(latents)))
        if picture is None:
            self._make_room(said)
            picture, said = attempt(lambda: self._on_path(lambda path: path.decode(latents)))
        if picture is None:
            release_memory()
            raise OutOfMemory(said, width=request.width, height=request.height)
        card = self.card
        if card.options["path"] != path:  # left while decoding, or not taken because of the guidance
            card = replace(card, options=card.options | {"path": path, "decode": card.options["path"]})
        return Denoised(
            request=request,
            picture=picture,
            card=card,
            unused_prompt=unused_tail(request.prompt, self._read_prompt),
            began_at=began_at,
            lora_sha256=lora_sha256,
        )

    def finish(self, denoised: Denoised) -> Drawn:
        """Fetch, check and write a picture.

        Raises: NonFiniteOutput for latents that are not finite and for a picture of one colour; EngineDead.
        """
        request = denoised.request
        fetched, said = attempt(lambda: (denoised.picture.wait(), denoised.picture.is_finite()))
        if fetched is None:
            raise OutOfMemory(said, width=request.width, height=request.height)
        rgb, is_finite = fetched
        # The end of the picture before ran beside the beginning of this one: no second is counted twice.
        now = time.monotonic()
        gpu_s = now - max(denoised.began_at, self._finished_at)
        self._finished_at = now
        if not is_finite:
            raise NonFiniteOutput("the latents are not finite")
        if rgb.shape != (request.height, request.width, 3):
            raise GenerationError(
                f"a picture of {rgb.shape} came out where {request.width}x{request.height} was asked"
            )
        if denoised.picture.is_flat():
            raise NonFiniteOutput("the picture has one colour only")
        data = denoised.picture.png(
            images.text_chunks(request, denoised.card, lora_sha256=denoised.lora_sha256)
        )
        return Drawn(png=data, seed=request.seed, gpu_s=gpu_s, unused_prompt=denoised.unused_prompt)

    # --- one picture ---

    def _latents(self, request: ImageRequest, on_step: OnStep) -> tuple[torch.Tensor, Any | None, str, str]:
        """Return the finished latents, the picture if its decoding has begun already, the digest of the LoRA they
        were drawn with, if any, and the path that drew."""
        sigmas = self._sigmas(request.steps)
        if self._preview is not None:
            self._preview.begin()

        def after_step(step: int, steps: int, latents: torch.Tensor) -> None:
            preview = None
            if self._preview is not None:
                preview = self._preview.after_step(sigmas[step - 1], sigmas[step], latents)
            on_step(step, steps, preview)

        begun: list[Any] = []

        def decode(latents: torch.Tensor) -> None:
            # Whatever goes wrong will again, after the last step, where it is dealt with.
            with suppress(Exception):
                begun.append(self._path.decode(latents))

        def denoise(path: Any, **settings: Any) -> torch.Tensor:
            begun.clear()
            if path is not self._stock and self._device.type == "cuda":
                settings["on_queued"] = decode
            return path.denoise(
                path.caption(request.prompt),
                seed=request.seed,
                width=request.width,
                height=request.height,
                steps=request.steps,
                on_step=after_step,
                **settings,
            )

        lora_sha256 = ""
        if request.lora and request.lora_scale:
            lora_sha256 = self._loras.attach(request.lora, request.lora_scale)
        else:
            self._loras.detach()
        if request.guidance_scale > 0:
            return denoise(self._stock, guidance_scale=request.guidance_scale), None, lora_sha256, "stock"
        latents = self._on_path(denoise)
        return latents, begun[0] if begun else None, lora_sha256, self.card.options["path"]

    def _on_path(self, work: Callable[[Any], Result]) -> Result:
        """Work on the chosen path; on the stock one if the fast one cannot, now and from now on."""
        try:
            return work(self._path)
        except ZBotError:
            raise
        except Exception as error:
            if self._path is self._stock or is_out_of_memory(error) or is_poisoned(error):
                raise
            self._leave_fast_path(error)
        return work(self._path)

    def _leave_fast_path(self, error: Exception) -> None:
        log.error("the fast path does not work here; drawing with the stock pipeline", exc_info=error)
        self._path = self._stock
        self.card = replace(self.card, options=self.card.options | {"path": "stock"})

    def _sigmas(self, steps: int) -> list[float]:
        shifted = {"mu": 1.0} if self._scheduler.config.use_dynamic_shifting else {}
        self._scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), **shifted)
        return self._scheduler.sigmas.tolist()

    # --- too little memory ---

    def _make_room(self, said: str) -> None:
        """Go to the next smaller placement, for this picture and those after it."""
        # Tiles help the decode only: what denoises with less is the next placement after them.
        tightest = "tiled" if self._placement == "resident" else self._placement
        smaller = _placement.fallback(tightest, self._device, self._options)
        if smaller is None:
            log.warning("drawing ran out of memory (%s); trying once more", said)
            release_memory()
            return
        log.warning("drawing ran out of memory (%s); placement %s from now on", said, smaller)
        # Whoever keeps the old path keeps the weights where they are.
        self._path, self._warming = self._stock, None
        self._stock.reset()
        self._loras.detach()
        release_memory()
        _placement.place(self._pipe, smaller, self._device)
        release_memory()
        self._placement = smaller
        chosen, said = attempt(self._choose_path)
        if chosen is None:
            log.warning("the fast path has too little memory (%s); drawing with the stock pipeline", said)
            release_memory()
        self._path, draws_with = chosen or (self._stock, "stock")
        self.card = replace(
            self.card,
            placement=smaller,
            memory_bytes=_placement.taken_card_bytes(self._device),
            options=self.card.options | {"path": draws_with},
        )

    def _tile(self) -> None:
        release_memory()
        _placement.tile_decoding(self._pipe.vae)
        if self._placement == "resident":
            self._placement = "tiled"
        self.card = replace(
            self.card, placement=self._placement, options=self.card.options | {"decode": "tiled"}
        )
