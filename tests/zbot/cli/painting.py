"""An engine for the command line's tests: at once a small picture that its seed and prompt decide, with its recipe."""

import asyncio
import hashlib
from dataclasses import replace

from zbot import png
from zbot.engine import Drawn, LoadProgress, ModelCard, OnLoad, OnStep, Step
from zbot.errors import GenerationError
from zbot.images import text_chunks
from zbot.request import ImageRequest

CARD = ModelCard(
    model="tiny",
    revision="1",
    dtype="float32",
    device="cpu",
    placement="resident",
    native_size=256,
    versions={"torch": "2.13.0", "zbot": "0.1.0"},
    options={"threads": "2"},
)


class PaintingEngine:
    """Draws at once; `fails` says what becomes of a seed, `drawn` holds what was drawn."""

    def __init__(self, *, revision: str) -> None:
        self.card = replace(CARD, revision=revision)
        self.fails: dict[int, GenerationError] = {}
        self.drawn: list[ImageRequest] = []
        self.is_open = False

    async def load(self, on_progress: OnLoad) -> ModelCard:
        on_progress(LoadProgress(stage="transformer", done=1, total=2, seconds=0.1))
        self.is_open = True
        return self.card

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        assert self.is_open and request.num_images == 1
        for number in range(1, request.steps + 1):
            on_step(Step(number=number, total=request.steps))
            await asyncio.sleep(0)
        if error := self.fails.get(request.seed):
            raise error
        self.drawn.append(request)
        return Drawn(png=paint(request, self.card), seed=request.seed, gpu_s=0.25)

    async def close(self) -> None:
        self.is_open = False


def paint(request: ImageRequest, card: ModelCard = CARD) -> bytes:
    """Return a picture of one pattern for one prompt and seed, with its recipe."""
    import numpy as np

    digest = hashlib.sha256(f"{request.prompt}/{request.seed}".encode()).digest()
    colours = np.frombuffer(digest[:27], dtype=np.uint8).reshape(3, 3, 3)
    rows, columns = -(-request.height // 3), -(-request.width // 3)
    pixels = colours.repeat(rows, axis=0).repeat(columns, axis=1)[: request.height, : request.width]
    return png.encode(np.ascontiguousarray(pixels), text_chunks(request, card))
