"""The bot with an engine that draws what a `Desk` in the test's process says: everything but the model is real."""

import asyncio
import contextlib
import functools
import io
import json
import os
import random
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import bot
from zbot import images
from zbot.config import Settings
from zbot.engine import Drawn, LoadProgress, ModelCard, OnLoad, OnStep, Step
from zbot.errors import EngineDead, NonFiniteOutput, OutOfMemory, WeightsError
from zbot.request import ImageRequest

DESK = "FAKE_ENGINE_DESK"
GPU_S = 0.5
ERRORS = {
    "out_of_memory": OutOfMemory("too little memory"),
    "non_finite": NonFiniteOutput("NaN in the latents"),
    "engine_dead": EngineDead("the process ended with signal 9", on_card=True),
    "engine_stalled": EngineDead("no step", code="engine_stalled", on_card=True),
    "bug": RuntimeError("nobody thought of this"),
}


class DeskEngine:
    """Implements `zbot.engine.Engine`: asks the desk before every picture and does as it is told."""

    def __init__(self, address: str, model: str) -> None:
        self._address = address
        self._card = ModelCard(
            model=model,
            revision="1",
            dtype="float32",
            device="cpu",
            placement="resident",
            native_size=256,
        )
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._replies: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._count = 0
        self._loaded = False

    async def load(self, on_progress: OnLoad) -> ModelCard:
        if self._writer is None:
            host, port = self._address.split(":")
            reader, self._writer = await asyncio.open_connection(host, int(port))
            self._reading = asyncio.create_task(self._read(reader))
        on_progress(LoadProgress(stage="transformer", done=0, total=1, seconds=0.0))
        order = await self._ask("load")
        if order.get("error") == "weights":
            raise WeightsError("model.safetensors is damaged; `python -m zbot weights fetch` mends it")
        self._loaded = True
        return self._card

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        if not self._loaded:
            raise EngineDead("the engine is not loaded", on_card=False)
        number = self._count = self._count + 1
        order = await self._ask("draw", number, prompt=request.prompt, seed=request.seed)
        try:
            for step in range(request.steps + 1):
                if step:
                    on_step(Step(number=step, total=request.steps))
                if step in order.get("hold_at", ()):
                    await self._ask("held", number)
                if order.get("error") and order.get("fail_at", 1) == step:
                    error = ERRORS[order["error"]]
                    self._loaded = not isinstance(error, EngineDead)
                    raise error
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._tell("stopped", number)
            raise
        self._tell("drawn", number)
        return Drawn(
            png=picture(request, self._card, noise=order.get("noise", False)),
            seed=request.seed,
            gpu_s=GPU_S,
            unused_prompt=order.get("unused_prompt", ""),
        )

    async def close(self) -> None:
        if self._reading is not None and self._writer is not None:
            self._reading.cancel()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def _tell(self, what: str, number: int, **facts: Any) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps({"what": what, "number": number, **facts}).encode() + b"\n")

    async def _ask(self, what: str, number: int = 0, **facts: Any) -> dict[str, Any]:
        replies = self._replies.setdefault(number, asyncio.Queue())
        self._tell(what, number, **facts)
        return await replies.get()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            reply = json.loads(line)
            self._replies.setdefault(reply["number"], asyncio.Queue()).put_nowait(reply)
        os._exit(3)  # the desk is gone and the test with it: nobody else would end this process


def picture(request: ImageRequest, card: ModelCard, *, noise: bool) -> bytes:
    """Return a PNG that its seed and size decide alone: a few coloured squares, or noise that no encoder shrinks."""
    rng = random.Random(f"{request.seed} {request.prompt}")
    size = (request.width, request.height)
    small = size if noise else (8, 8)
    image = Image.frombytes("RGB", small, rng.randbytes(small[0] * small[1] * 3)).resize(
        size, Image.Resampling.NEAREST
    )
    info = PngInfo()
    for key, value in images.text_chunks(request, card).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def main() -> int:
    """Do what bot.main does, with the other engine."""

    def make_engine(settings: Settings) -> DeskEngine:
        return DeskEngine(os.environ[DESK], settings.model)

    bot.run = functools.partial(bot.run, make_engine=make_engine)
    return bot.main()
