"""What only a real card can show: placements, running out of memory, a broken context, the same bytes again."""

import asyncio
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.zbot.engine import faults
from zbot.engine import Step, _life
from zbot.engine.process import EngineOptions, ProcessEngine
from zbot.errors import EngineDead, OutOfMemory
from zbot.images import read_recipe
from zbot.request import ImageRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not any(Path("/dev").glob("nvidia[0-9]*")), reason="no NVIDIA card"),
]

ROOT = Path(__file__).parents[3]
TINY = str(ROOT / "zbot" / "models" / "tiny")
PLACEMENTS = (
    "resident",
    "tiled",
    "encoder_offload",
    "group_offload",
    "model_offload",
    "sequential_offload",
)
APPLE = ImageRequest(prompt="a red apple", seed=7, width=256, height=256)


def ignore(step: Step) -> None:
    pass


def engine(**options: Any) -> ProcessEngine:
    return ProcessEngine(
        EngineOptions(model_dir=TINY, model="tiny", **{"device": "cuda"} | options), stall_s=60
    )


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def difference(one: bytes, other: bytes) -> float:
    return float(np.abs(pixels(one) - pixels(other)).mean())


@pytest.fixture(scope="module")
def on_cpu() -> bytes:
    """The picture as the CPU draws it in float32."""

    async def draw() -> bytes:
        one = engine(device="cpu")
        await one.load(lambda _: None)
        drawn = await one.draw(APPLE, ignore)
        await one.close()
        return drawn.png

    return asyncio.run(draw())


@pytest.mark.parametrize(
    ("placement", "dtype"),
    [*((placement, "bfloat16") for placement in PLACEMENTS), ("resident", "float32")],
)
def test_every_placement_draws_the_picture(placement: str, dtype: str, on_cpu: bytes) -> None:
    async def draw() -> None:
        one = engine(placement=placement, dtype=dtype, compile="off")
        began = time.monotonic()
        card = await one.load(lambda _: None)
        loaded_s = time.monotonic() - began
        steps: list[int] = []
        first = await one.draw(APPLE, lambda step: steps.append(step.number))
        # Two at once, and a size that has more than one tile.
        again, large = await asyncio.gather(
            one.draw(APPLE, ignore), one.draw(replace(APPLE, width=768, height=528), ignore)
        )
        await one.close()
        print(
            placement, dtype, card.device, f"load {loaded_s:.1f} s, {first.gpu_s:.2f} s, {again.gpu_s:.2f} s"
        )
        assert steps == list(range(1, 9))
        assert (card.placement, card.dtype) == (placement, dtype)
        assert read_recipe(first.png).placement == placement
        assert first.png == again.png
        assert pixels(large.png).std() > 20
        # The same noise, other arithmetic: the same thing is to be seen.
        assert difference(first.png, on_cpu) < (1.0 if dtype == "float32" else 6.0)

    asyncio.run(draw())


def test_the_fast_path_draws_the_same_bytes_before_and_after_a_restart(on_cpu: bytes) -> None:
    async def draw() -> None:
        one = engine()
        card = await one.load(lambda _: None)
        assert card.placement == "resident" and card.options["path"].startswith("fast")
        first = await one.draw(APPLE, ignore)
        batch = await asyncio.gather(*(one.draw(replace(APPLE, seed=7 + k), ignore) for k in range(2)))
        await one.close()
        await one.load(lambda _: None)
        last = await one.draw(APPLE, ignore)
        await one.close()
        assert first.png == batch[0].png == last.png
        assert difference(first.png, on_cpu) < 6.0

    asyncio.run(draw())


def test_a_device_side_assert_replaces_the_process_and_the_next_picture_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_life, "CHILD_MODULE", "tests.zbot.engine.faulty_child")

    async def draw() -> None:
        one = engine()
        await one.load(lambda _: None)
        before = await one.draw(APPLE, ignore)
        pid = one.pid
        poisoned = asyncio.create_task(one.draw(replace(APPLE, prompt=faults.ASSERT), ignore))
        waiting = asyncio.create_task(one.draw(APPLE, ignore))
        with pytest.raises(EngineDead, match="assert") as caught:
            await poisoned
        assert caught.value.facts["on_card"] is True
        with pytest.raises(EngineDead) as caught:
            await waiting
        assert caught.value.facts["on_card"] is False
        began = time.monotonic()
        await one.load(lambda _: None)
        print(f"replaced in {time.monotonic() - began:.1f} s")
        assert one.pid != pid
        assert (await one.draw(APPLE, ignore)).png == before.png
        await one.close()

    asyncio.run(draw())


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_running_out_of_memory_is_survived(compile: str) -> None:
    async def draw() -> None:
        # The weights of the tiny model take 20 MB, a picture of 1024x1024 several hundred.
        one = engine(memory_fraction=0.0012, compile=compile, dtype="float32", placement="resident")
        await one.load(lambda _: None)
        pid = one.pid
        small = await one.draw(replace(APPLE, width=64, height=64), ignore)
        try:
            large = await one.draw(replace(APPLE, width=1024, height=1024), ignore)
            print(compile, "drawn with", read_recipe(large.png).placement, read_recipe(large.png).options)
            assert read_recipe(large.png).options["decode"] == "tiled"
        except OutOfMemory as error:
            print(compile, error)
            assert error.facts["width"] == 1024
        assert one.pid == pid
        assert difference((await one.draw(replace(APPLE, width=64, height=64), ignore)).png, small.png) < 1.0
        await one.close()

    asyncio.run(draw())
