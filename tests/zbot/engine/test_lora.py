"""LoRA files in every format, in the real child with the fast path on: each has its effect and leaves none behind."""

import asyncio
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import pytest_asyncio
import torch
from PIL import Image
from safetensors.torch import save_file

from zbot.engine import _lora
from zbot.engine.process import EngineOptions, ProcessEngine
from zbot.errors import GenerationError, LoraError
from zbot.images import read_recipe
from zbot.request import ImageRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

TINY = Path(__file__).parents[3] / "zbot" / "models" / "tiny"
SMALL = ImageRequest(prompt="a red apple", seed=7, width=128, height=128, steps=2)
DIM, RANK, LAYERS = 192, 4, 3
ALPHA = RANK / 2  # half the rank: the scaling is exact in every number format

Tensors = dict[str, torch.Tensor]


def weights() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return down and up of some attention layers; q, k and v share their down, so that they can be joined."""
    rng = torch.Generator().manual_seed(0)
    made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer in range(LAYERS):
        down = torch.randn(RANK, DIM, generator=rng) * 0.1
        for part in ("to_q", "to_k", "to_v"):
            made[f"layers.{layer}.attention.{part}"] = (down, torch.randn(DIM, RANK, generator=rng) * 0.2)
        made[f"layers.{layer}.attention.to_out.0"] = (
            torch.randn(RANK, DIM, generator=rng) * 0.1,
            torch.randn(DIM, RANK, generator=rng) * 0.2,
        )
    return made


WEIGHTS = weights()


def plain(prefix: str, names: tuple[str, str] = ("lora_A", "lora_B")) -> Tensors:
    return {
        f"{prefix}{module}.{name}.weight": tensor.clone()
        for module, pair in WEIGHTS.items()
        for name, tensor in zip(names, pair, strict=True)
    }


def joined(prefix: str, names: tuple[str, str]) -> Tensors:
    """Return the layers as the model's original release has them: q, k and v in one."""
    tensors: Tensors = {}
    for layer in range(LAYERS):
        at = f"layers.{layer}.attention"
        ups = [WEIGHTS[f"{at}.{part}"][1] for part in ("to_q", "to_k", "to_v")]
        tensors[f"{prefix}{at}.qkv.{names[0]}.weight"] = WEIGHTS[f"{at}.to_q"][0].clone()
        tensors[f"{prefix}{at}.qkv.{names[1]}.weight"] = torch.cat(ups)
        for name, tensor in zip(names, WEIGHTS[f"{at}.to_out.0"], strict=True):
            tensors[f"{prefix}{at}.out.{name}.weight"] = tensor.clone()
    return tensors


def with_alpha(tensors: Tensors) -> Tensors:
    """Say half of every LoRA's strength in an alpha, and the other half in twice the numbers."""
    ups = re.compile(r"\.(lora_up|lora_B)\.weight$")
    alphas = {ups.sub(".alpha", name): torch.tensor(ALPHA) for name in tensors if ups.search(name)}
    return {name: tensor * 2 if ups.search(name) else tensor for name, tensor in tensors.items()} | alphas


def kohya(tensors: Tensors) -> Tensors:
    """Return names as kohya's trainer writes them, with underscores."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        module, dot, part = re.fullmatch(r"(.*?)(\.)(lora_\w+\.weight|alpha)", name).groups()  # type: ignore[union-attr]
        made[f"lora_unet_{module.replace('.', '_')}{dot}{part}"] = tensor
    return made


DOWN_UP = ("lora_down", "lora_up")
FORMATS: dict[str, Tensors] = {
    "diffusers": plain("transformer."),
    "ai-toolkit": plain("diffusion_model."),
    "kohya": kohya(with_alpha(plain("", DOWN_UP))),
    "kohya-joined": kohya(with_alpha(joined("", DOWN_UP))),
    "bare": plain(""),
    "bare-alpha": with_alpha(plain("")),
    "peft": plain("base_model.model."),
    "comfy-joined": joined("diffusion_model.", ("lora_A", "lora_B")),
    "comfy-joined-alpha": with_alpha(joined("diffusion_model.", DOWN_UP)),
}
WRONG: dict[str, tuple[Tensors, str]] = {
    "another-model": ({"unet.down.0.lora_A.weight": torch.ones(4, 8), "unet.down.0.lora_B.weight": torch.ones(8, 4)},
                      "does not fit this model, which has no unet.down.0"),
    "more-layers": ({name.replace("layers.0.", "layers.29."): tensor for name, tensor in FORMATS["diffusers"].items()},
                    "has no layers.29.attention.to_k"),
    "other-width": ({name: torch.ones(4, 384) if "lora_A" in name else torch.ones(384, 4) for name in FORMATS["bare"]},
                    "layers.0.attention.to_k from 384 to 384 numbers, which is 192 to 192 here"),
    "zero": ({name: tensor * 0 for name, tensor in FORMATS["bare"].items()}, "has no effect"),
    "half": ({name: tensor for name, tensor in FORMATS["bare"].items() if "lora_A" in name}, "no format"),
    "dora": (FORMATS["bare"] | {"layers.0.attention.to_q.dora_scale": torch.ones(DIM)}, "DoRA"),
    "a-whole-model": ({"layers.0.attention.to_q.weight": torch.ones(DIM, DIM)}, "no format"),
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA files of every format, right and wrong."""
    directory = tmp_path_factory.mktemp("loras")
    for name, tensors in (FORMATS | {name: tensors for name, (tensors, _) in WRONG.items()}).items():
        save_file(tensors, directory / f"{name}.safetensors")
    return directory


def options(directory: Path) -> EngineOptions:
    return EngineOptions(
        model_dir=str(TINY),
        model="tiny",
        revision="test",
        threads=2,
        gives_way=False,
        preview=False,
        lora_dir=str(directory),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(directory: Path) -> AsyncIterator[ProcessEngine]:
    """One child for the module."""
    engine = ProcessEngine(options(directory))
    await engine.load(lambda _: None)
    yield engine
    await engine.close()


async def draw(engine: ProcessEngine, lora: str = "", scale: float = 1.0, **fields: Any) -> bytes:
    request = replace(SMALL, lora=lora, lora_scale=scale, **fields)
    return (await engine.draw(request, lambda _: None)).png


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.tobytes()


async def refused(engine: ProcessEngine, name: str) -> str:
    with pytest.raises(LoraError) as caught:
        await draw(engine, name)
    assert caught.value.code == "lora"
    return str(caught.value)


async def test_every_format_has_an_effect_and_the_same_one(engine: ProcessEngine) -> None:
    base = await draw(engine)
    assert read_recipe(base).options["path"].startswith("fast")
    drawn = {name: pixels(await draw(engine, name)) for name in FORMATS}
    assert drawn["diffusers"] != pixels(base)
    assert [name for name, picture in drawn.items() if picture != drawn["diffusers"]] == []
    assert await draw(engine) == base, "something of a LoRA was left behind"


@pytest.mark.parametrize("name", WRONG)
async def test_what_does_not_fit_is_refused_with_the_files_name_and_leaves_nothing_behind(
    engine: ProcessEngine, directory: Path, name: str
) -> None:
    base = await draw(engine)
    said = await refused(engine, name)
    assert f"{directory / name}.safetensors" in said and WRONG[name][1] in said
    assert await draw(engine) == base


@pytest.mark.parametrize(
    "content", [b"", b"not a LoRA at all", b"\x80\x04\x95pickle" * 99, "truncated"], ids=repr
)
async def test_what_is_no_safetensors_file_is_refused_with_its_name(
    engine: ProcessEngine, directory: Path, content: bytes | str
) -> None:
    path = directory / "junk.safetensors"
    whole = (directory / "bare.safetensors").read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[:-100])
    said = await refused(engine, "junk")
    assert str(path) in said and "safetensors" in said
    path.unlink()
    assert f"there is no LoRA file junk.safetensors in {directory}" in await refused(engine, "junk")


async def test_a_name_leads_nowhere_else(engine: ProcessEngine, directory: Path) -> None:
    (directory.parent / "outside.safetensors").write_bytes((directory / "bare.safetensors").read_bytes())
    for name in ("../outside", str(directory.parent / "outside"), "./bare", "bare.safetensors"):
        assert "there is no LoRA file" in await refused(engine, name)


async def test_the_case_of_a_name_does_not_matter_and_the_recipe_names_file_and_strength(
    engine: ProcessEngine, directory: Path
) -> None:
    recipe = read_recipe(await draw(engine, "DIFFUSERS", 0.5))
    digest = hashlib.sha256((directory / "diffusers.safetensors").read_bytes()).hexdigest()
    assert (recipe.lora, recipe.lora_scale, recipe.lora_sha256) == ("DIFFUSERS", 0.5, digest)
    assert recipe.options["path"].startswith("fast")
    assert recipe.to_request() == replace(SMALL, lora="DIFFUSERS", lora_scale=0.5)


async def test_strength_counts_and_nothing_of_it_is_nothing_of_the_lora(engine: ProcessEngine) -> None:
    base = await draw(engine)
    strengths = {scale: pixels(await draw(engine, "bare", scale)) for scale in (-1.0, 0.0, 0.5, 1.0)}
    assert strengths[0.0] == pixels(base)
    assert len(set(strengths.values())) == 4
    # From one file as from two: the strength is no part of what is loaded.
    await draw(engine, "kohya")
    assert pixels(await draw(engine, "bare", 0.5)) == strengths[0.5]


async def test_a_file_that_changes_is_read_again(engine: ProcessEngine, directory: Path) -> None:
    path = directory / "changing.safetensors"
    save_file(FORMATS["bare"], path)
    before = await draw(engine, "changing")
    save_file({name: tensor * 1.5 for name, tensor in FORMATS["kohya"].items()}, path)
    after = await draw(engine, "changing")
    assert pixels(before) != pixels(after)
    assert read_recipe(before).lora_sha256 != read_recipe(after).lora_sha256


async def test_the_strength_that_diffusers_wrote_beside_the_numbers_counts(
    engine: ProcessEngine, directory: Path
) -> None:
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    doubled = {name: tensor * 2 if "lora_B" in name else tensor for name, tensor in FORMATS["bare"].items()}
    for name, prefix in (("saved", "transformer."), ("saved-bare", "")):
        text = json.dumps({f"{prefix}{key}": value for key, value in settings.items()})
        tensors = {f"{prefix}{key}": tensor for key, tensor in doubled.items()}
        save_file(tensors, directory / f"{name}.safetensors", metadata={"lora_adapter_metadata": text})
        assert pixels(await draw(engine, name)) == pixels(await draw(engine, "diffusers"))


async def test_lokr_has_an_effect_and_leaves_none_behind(engine: ProcessEngine, directory: Path) -> None:
    rng = torch.Generator().manual_seed(1)
    factors = {
        f"diffusion_model.layers.0.attention.to_q.lokr_w{number}": torch.randn(side, side, generator=rng)
        * 0.3
        for number, side in ((1, 4), (2, 48))
    }
    save_file(factors, directory / "lokr.safetensors")
    joined = {name.replace("to_q", "qkv"): tensor for name, tensor in factors.items()}
    save_file(joined, directory / "lokr-joined.safetensors")
    base = await draw(engine)
    assert pixels(await draw(engine, "lokr")) != pixels(base)
    assert "LoKr" in await refused(engine, "lokr-joined")
    assert await draw(engine) == base


async def test_a_lora_that_waits_behind_a_plain_picture_does_not_touch_it(engine: ProcessEngine) -> None:
    base, style = await draw(engine), await draw(engine, "bare")
    names = ["", "bare", "", "bare", "bare", ""]
    drawn = await asyncio.gather(*(draw(engine, name) for name in names))
    assert drawn == [style if name else base for name in names]


async def test_a_cancelled_picture_with_a_lora_leaves_nothing_behind(engine: ProcessEngine) -> None:
    base = await draw(engine)
    begun = asyncio.Event()
    request = replace(SMALL, lora="bare", steps=50)
    drawing = asyncio.create_task(engine.draw(request, lambda _: begun.set()))
    await begun.wait()
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing
    assert await draw(engine) == base


async def test_a_lora_draws_on_the_fast_path_what_it_draws_on_the_stock_path(
    engine: ProcessEngine, directory: Path
) -> None:
    stock = ProcessEngine(replace(options(directory), compile="off"))
    await stock.load(lambda _: None)
    drawn = [await draw(one, "bare", 0.8) for one in (engine, stock)]
    await stock.close()
    paths = [read_recipe(png).options["path"] for png in drawn]
    assert paths[0].startswith("fast") and paths[1] == "stock"
    one, two = (torch.frombuffer(bytearray(pixels(png)), dtype=torch.uint8).int() for png in drawn)
    assert (one - two).abs().max() <= 1


async def test_the_fast_path_forgets_when_what_the_transformer_computes_has_changed(
    directory: Path,
) -> None:
    changes: list[str] = []
    pipe = diffusers.ZImagePipeline.from_pretrained(TINY, local_files_only=True)
    loras = _lora.Loras(
        pipe,
        dtype=torch.float32,
        directory=str(directory),
        files={},
        on_change=lambda: changes.append("changed"),
    )
    for step, expected in (
        (loras.detach, 0),
        (lambda: loras.attach("bare", 0.8), 1),
        (lambda: loras.attach("bare", 0.8), 1),
        (lambda: loras.attach("bare", 0.9), 2),
        (lambda: loras.attach("kohya", 0.9), 4),
        (loras.detach, 5),
        (loras.detach, 5),
    ):
        step()
        assert len(changes) == expected


# --- without the child ---


async def test_a_file_beyond_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.safetensors"
    path.write_bytes(bytes(100))
    monkeypatch.setattr(_lora, "MAX_LORA_BYTES", 99)
    with pytest.raises(LoraError, match=r"large\.safetensors is larger than"):
        _lora._read(path)


async def test_an_effect_that_the_library_does_not_show_is_an_error(directory: Path) -> None:
    pipe = Blind()
    loras = _lora.Loras(pipe, dtype=torch.float32, directory=str(directory), files={}, on_change=lambda: None)
    loras._check = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(GenerationError, match=r"bare\.safetensors has no effect"):
        loras.attach("bare", 1.0)
    assert pipe.unloaded == 1


class Blind:
    """A pipeline that takes every file and shows no adapter, as diffusers does with names it does not know."""

    transformer = torch.nn.Linear(1, 1)
    unloaded = 0

    def lora_state_dict(self, state: Mapping[str, torch.Tensor], **_: Any) -> Mapping[str, torch.Tensor]:
        return state

    def load_lora_into_transformer(self, *_: Any, **__: Any) -> None:
        pass

    def get_list_adapters(self) -> dict[str, list[str]]:
        return {}

    def unload_lora_weights(self) -> None:
        self.unloaded += 1
