"""Loading and drawing in this process: what the child does, with faults put in by hand."""

import contextlib
import importlib.util
import io
import itertools
import json
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from zbot.engine import Drawn, ModelCard, _placement, child, zimage
from zbot.engine._faults import attempt, is_out_of_memory, is_poisoned
from zbot.engine._options import EngineOptions
from zbot.engine._preview import Preview
from zbot.engine._prompt import token_reader, unused_tail
from zbot.errors import (
    ConfigError,
    EngineDead,
    GenerationCancelled,
    GenerationError,
    NonFiniteOutput,
    OutOfMemory,
    WeightsError,
)
from zbot.images import read_recipe
from zbot.request import ImageRequest

TINY = Path(__file__).parents[3] / "zbot" / "models" / "tiny"
SMALL = ImageRequest(prompt="a red apple", seed=7, width=128, height=128)
fast_card = ModelCard(
    model="tiny", revision="1", dtype="float32", device="cpu", placement="resident", native_size=256
)
NO_HOOKS = SimpleNamespace(hooks={})
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")


def load(directory: Path = TINY, **options: Any) -> zimage.Painter:
    settings = {"model": "tiny", "gives_way": False, "preview": False} | options
    return zimage.load(EngineOptions(model_dir=str(directory), **settings), lambda *_: None)


def draw(painter: zimage.Painter, request: ImageRequest = SMALL) -> bytes:
    return painter.finish(painter.denoise(request, lambda *_: None)).png


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


@pytest.fixture(scope="module")
def stock() -> zimage.Painter:
    return load(compile="off")


@pytest.fixture(scope="module")
def fast() -> zimage.Painter:
    return load()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.fixture(params=["off", "auto"])
def painter(
    request: pytest.FixtureRequest, stock: zimage.Painter, fast: zimage.Painter
) -> Iterator[zimage.Painter]:
    """Either path; what a test sets on it is taken back."""
    painter = stock if request.param == "off" else fast
    before = dict(vars(painter))
    vae = painter._pipe.vae
    tiles = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    yield painter
    vars(painter).update(before)
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = tiles


# --- the picture ---


def test_without_the_fast_path_the_picture_is_the_stock_pipelines_bit_for_bit(stock: zimage.Painter) -> None:
    pipe = ZImagePipeline.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt=SMALL.prompt,
        width=128,
        height=128,
        num_inference_steps=8,
        guidance_scale=0.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    assert stock.card.options["path"] == "stock"
    assert np.array_equal(pixels(draw(stock)), np.asarray(expected))


def test_the_fast_path_draws_the_stock_picture_within_two_grey_levels(
    stock: zimage.Painter, fast: zimage.Painter
) -> None:
    assert fast.card.options["path"].startswith("fast")
    assert np.abs(pixels(draw(stock)) - pixels(draw(fast))).max() <= 2


def test_the_same_request_gives_the_same_bytes_twice(painter: zimage.Painter) -> None:
    assert draw(painter) == draw(painter)


@pytest.mark.parametrize("steps", [1, 4])
def test_every_step_is_reported_once_and_in_order(painter: zimage.Painter, steps: int) -> None:
    seen: list[tuple[int, int]] = []
    painter.denoise(replace(SMALL, steps=steps), lambda step, of, preview: seen.append((step, of)))
    assert seen == [(number, steps) for number in range(1, steps + 1)]


def test_raising_in_a_step_stops_the_picture_and_the_next_one_works(painter: zimage.Painter) -> None:
    expected = draw(painter)

    def cancel(step: int, steps: int, preview: bytes | None) -> None:
        if step == 3:
            raise GenerationCancelled

    with pytest.raises(GenerationCancelled):
        painter.denoise(SMALL, cancel)
    assert draw(painter) == expected


def test_guidance_is_drawn_with_the_stock_pipeline(painter: zimage.Painter) -> None:
    guided = draw(painter, replace(SMALL, guidance_scale=2.0))
    assert not np.array_equal(pixels(guided), pixels(draw(painter)))


def test_the_text_encoder_is_not_run_again_for_the_same_prompt(painter: zimage.Painter) -> None:
    first = draw(painter, replace(SMALL, prompt="a green dragon"))
    encoder = painter._pipe.text_encoder
    calls: list[object] = []
    handle = encoder.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    try:
        assert draw(painter, replace(SMALL, prompt="a green dragon")) == first
    finally:
        handle.remove()
    assert not calls


def test_previews_come_no_more_often_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("zbot.engine._preview.time.monotonic", lambda: now[0])
    preview = Preview(8, torch.device("cpu"), every_s=0.7)
    latents = torch.zeros(1, 8, 16, 16)
    given: list[float] = []
    for _ in range(3):
        preview.begin()
        for step in range(8):
            if preview.after_step(1 - step / 8, 1 - (step + 1) / 8, latents):
                given.append(now[0])
            now[0] += 0.1
    assert len(given) == 3
    assert all(later - earlier > 0.69 for earlier, later in itertools.pairwise(given))


def test_a_model_with_unknown_latents_has_no_preview() -> None:
    preview = Preview(7, torch.device("cpu"), every_s=0.0)
    assert [preview.after_step(1.0, 0.5, torch.zeros(1, 7, 4, 4)) for _ in range(2)] == [None, None]


# --- numbers that are no picture ---


@pytest.mark.parametrize("compile", ["off", "auto"])
def test_nan_in_the_weights_is_no_picture(copy: Path, compile: str) -> None:
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("attention.to_q.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(NonFiniteOutput, match="not finite"):
        draw(load(copy, compile=compile))


def test_a_picture_of_one_colour_is_no_picture(painter: zimage.Painter) -> None:
    vae = painter._pipe.vae
    weight, bias = vae.decoder.conv_out.weight.data, vae.decoder.conv_out.bias.data
    before = weight.clone(), bias.clone()
    weight.zero_(), bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    denoised = painter.denoise(SMALL, lambda *_: None)
    weight.copy_(before[0]), bias.copy_(before[1])
    with pytest.raises(NonFiniteOutput, match="one colour"):
        painter.finish(denoised)


def test_a_picture_of_another_size_is_no_result(painter: zimage.Painter) -> None:
    denoised = painter.denoise(SMALL, lambda *_: None)
    denoised.request = replace(SMALL, width=256)
    with pytest.raises(GenerationError, match="256x128"):
        painter.finish(denoised)


# --- faults of the fast path ---


@pytest.mark.parametrize("method", ["caption", "denoise", "decode"])
def test_a_fast_path_that_breaks_is_left_for_the_stock_pipeline(stock: zimage.Painter, method: str) -> None:
    broken = load()
    broken._path = Failing(broken._path, method, ImportError("no compiler"), 1)
    options = read_recipe(draw(broken)).options
    assert broken._path is broken._stock
    if method == "decode":
        assert options["path"].startswith("fast") and options["decode"] == "stock"
    else:
        assert options["path"] == "stock"
    assert np.array_equal(pixels(draw(broken)), pixels(draw(stock)))


@pytest.mark.parametrize("times", [0, 1])
def test_on_a_card_the_decoding_begins_with_the_last_step_and_once_more_if_that_fails(
    fast: zimage.Painter, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    expected, path, order = draw(fast), fast._path, list[str]()
    monkeypatch.setattr(fast, "_device", torch.device("cuda", 0))
    monkeypatch.setattr(fast, "_path", Failing(path, "decode", OUT_OF_MEMORY, times))
    decode = fast._path.decode
    monkeypatch.setattr(fast._path, "decode", lambda latents: order.append("decode") or decode(latents))
    denoised = fast.denoise(SMALL, lambda step, of, preview: order.append(f"{step} of {of}"))
    assert order[-2:] == (["decode", "8 of 8"] if times == 0 else ["8 of 8", "decode"])
    assert order.count("decode") == 1 + times
    assert fast.finish(denoised).png == expected


def test_a_fault_of_the_stock_pipeline_is_not_repeated() -> None:
    broken = load(compile="off")
    broken._stock = broken._path = Failing(broken._path, "denoise", ImportError("no compiler"), 1)
    with pytest.raises(ImportError):
        draw(broken)


# --- faults of the card ---


class FailsFirst:
    """Fails the first `times` calls and passes the others on."""

    def __init__(self, call: Callable[..., Any], error: Exception, times: int) -> None:
        self.call, self.error, self.times = call, error, times

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return self.call(*args, **kwargs)


class Failing:
    """A path of which one method fails at first."""

    def __init__(self, path: Any, method: str, error: Exception, times: int) -> None:
        self._path = path
        setattr(self, method, FailsFirst(getattr(path, method), error, times))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path, name)


def test_running_out_of_memory_once_costs_nothing(painter: zimage.Painter) -> None:
    expected = draw(painter)
    painter._path = Failing(painter._path, "denoise", OUT_OF_MEMORY, 1)
    assert draw(painter) == expected


def test_running_out_of_memory_twice_fails_the_picture_and_the_next_one_works(
    painter: zimage.Painter,
) -> None:
    expected = draw(painter)
    painter._path = Failing(painter._path, "denoise", OUT_OF_MEMORY, 2)
    with pytest.raises(OutOfMemory) as caught:
        draw(painter)
    assert caught.value.facts == {"width": 128, "height": 128}
    assert draw(painter) == expected


def test_on_a_card_running_out_of_memory_leads_to_the_next_placement(
    painter: zimage.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[str] = []
    monkeypatch.setattr(_placement, "place", lambda pipe, placement, device: placed.append(placement))
    painter._device = torch.device("cuda", 0)
    painter._path = Failing(painter._path, "denoise", OUT_OF_MEMORY, 1)
    recipe = read_recipe(draw(painter))
    assert placed == [recipe.placement] == ["encoder_offload"]
    assert painter.card.placement == "encoder_offload"


def test_on_a_card_too_small_for_the_decode_in_tiles_the_next_placement_decodes(
    painter: zimage.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[str] = []
    monkeypatch.setattr(_placement, "place", lambda pipe, placement, device: placed.append(placement))
    painter._device = torch.device("cuda", 0)
    # The fast path is asked once more: its decoding begins before the last step has ended.
    is_stock = painter._path is painter._stock
    painter._path = Failing(painter._path, "decode", OUT_OF_MEMORY, 2 if is_stock else 3)
    if is_stock:
        painter._stock = painter._path
    assert read_recipe(draw(painter)).placement == "encoder_offload"
    assert placed == ["encoder_offload"]


def test_a_warm_up_lets_go_of_the_path_that_was_given_up(fast: zimage.Painter) -> None:
    def idle() -> Iterator[int]:
        yield from range(9)

    class Path:
        def warm_up(self, sizes: object) -> Iterator[int]:
            return idle()

    before = dict(vars(fast))
    fast._device, fast._path = torch.device("cuda", 0), Path()
    warming = fast.warm_up()
    assert next(warming) == 0
    held = weakref.ref(fast._warming)  # type: ignore[type-var]
    fast._warming = None
    assert held() is None and next(warming, None) is None
    vars(fast).update(before)


def test_too_little_memory_to_warm_up_does_not_cost_the_fast_path(fast: zimage.Painter) -> None:
    class Path:
        def warm_up(self, sizes: object) -> Iterator[int]:
            yield 1
            raise OUT_OF_MEMORY

    before, path = dict(vars(fast)), Path()
    fast._device, fast._path = torch.device("cuda", 0), path
    assert list(fast.warm_up()) == [1]
    assert fast._path is path
    vars(fast).update(before)


def test_a_model_that_does_not_fit_as_chosen_is_loaded_in_the_next_placement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[Exception] = [OutOfMemory("too little memory to load the vae"), OUT_OF_MEMORY]
    assemble = zimage._assemble

    def fail_twice(*args: Any) -> zimage.Painter:
        if errors:
            raise errors.pop()
        return assemble(*args)

    monkeypatch.setattr(zimage, "_assemble", fail_twice)
    monkeypatch.setattr(_placement, "fallback", lambda *_: "tiled")
    assert load().card.placement == "tiled"


def test_a_picture_stopped_in_the_middle_frees_the_card_of_an_offloaded_model(
    stock: zimage.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise GenerationCancelled("cancelled")

    freed: list[bool] = []
    monkeypatch.setattr(stock._pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    with pytest.raises(GenerationCancelled):
        stock.denoise(SMALL, stop)
    assert freed


@pytest.mark.parametrize("placement", ["encoder_offload", "group_offload"])
def test_streamed_weights_draw_the_same_picture_and_can_be_placed_again(
    stock: zimage.Painter, placement: str
) -> None:
    painter, here = load(compile="off"), torch.device("cpu")
    for part in (painter._pipe.text_encoder, painter._pipe.transformer):
        _placement.pin(part, arena_bytes=1 << 22, pinned=False)
    expected = draw(stock)
    for step in (placement, "tiled", placement):
        _placement.place(painter._pipe, step, here)
        painter._stock.reset()
        assert np.array_equal(pixels(draw(painter)), pixels(expected))
        modules = [*painter._pipe.text_encoder.modules(), *painter._pipe.transformer.modules()]
        hooks = [name for module in modules for name in getattr(module, "_diffusers_hook", NO_HOOKS).hooks]
        assert bool(hooks) == (step == placement)


def test_the_fast_path_leaves_a_streamed_text_encoder_alone(fast: zimage.Painter) -> None:
    painter = load()
    _placement.place(painter._pipe, "encoder_offload", torch.device("cpu"))
    painter._path, path = painter._choose_path()
    assert path.startswith("fast")
    assert np.abs(pixels(draw(painter)) - pixels(draw(fast))).max() <= 2
    assert not painter._path._encoder._layers


def test_the_way_down_leaves_out_what_is_slower_and_larger_and_keeps_quantised_weights_on_the_card() -> None:
    def way(quantized: bool) -> list[str]:
        places = ["resident"]
        while following := _placement.next_smaller(places[-1], quantized=quantized):
            places.append(following)
        return places

    assert way(quantized=True) == ["resident", "tiled", "encoder_offload"]
    assert way(quantized=False) == [
        *way(quantized=True),
        "group_offload",
        "sequential_offload",
    ]


def test_a_placement_that_changed_while_drawing_reaches_the_bot_once() -> None:
    sent: list[dict[str, Any]] = []

    class Link:
        def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
            sent.append(header)
            if len(sent) == 3:
                raise EOFError

    class Painter:
        card = replace(fast_card, placement="resident")

        def finish(self, number: int) -> Drawn:
            if number == 2:
                self.card = replace(fast_card, placement="group_offload")
            return Drawn(png=b"", seed=number, gpu_s=0.1)

    one = child.Child(Link())  # type: ignore[arg-type]
    for number in (1, 2, 3):
        one._to_finish.put((number, number))  # type: ignore[arg-type]
    with contextlib.suppress(EOFError):
        one._finish_all(Painter())  # type: ignore[arg-type]
    told = [header.get("card", {}).get("placement") for header in sent if header["event"] == "drawn"]
    assert told == [None, "group_offload", None]


def test_a_placement_that_was_set_is_kept(painter: zimage.Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_placement, "place", lambda *_: pytest.fail("it was set"))
    painter._device = torch.device("cuda", 0)
    painter._options = replace(painter._options, placement="resident")
    painter._path = Failing(painter._path, "denoise", OUT_OF_MEMORY, 2)
    with pytest.raises(OutOfMemory):
        draw(painter)


def test_a_decode_without_memory_is_repeated_in_tiles_and_the_recipe_says_so(painter: zimage.Painter) -> None:
    painter._path = Failing(painter._path, "decode", RuntimeError("MPS backend out of memory"), 1)
    large = replace(SMALL, width=528, height=256, steps=1)
    recipe = read_recipe(draw(painter, large))
    assert (recipe.placement, recipe.options["decode"]) == ("tiled", "tiled")
    assert painter._pipe.vae.use_tiling and painter._pipe.vae.tile_sample_min_size == 512


def test_tiles_agree_with_the_whole_decode_within_a_tile(stock: zimage.Painter) -> None:
    # A picture no larger than a tile must not change at all.
    whole = draw(stock)
    tiled = load(compile="off", placement="tiled")
    assert np.array_equal(pixels(draw(tiled)), pixels(whole))


def test_a_broken_context_is_the_engines_end(painter: zimage.Painter) -> None:
    painter._path = Failing(painter._path, "denoise", RuntimeError("CUDA error: an illegal memory access"), 1)
    with pytest.raises(EngineDead) as caught:
        draw(painter)
    assert caught.value.facts["on_card"] is True


@pytest.mark.parametrize(
    ("text", "out_of_memory", "poisoned"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True, False),
        ("CUDA error: out of memory", True, False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, False),
        ("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory", True, False),
        ("CUDA error: device-side assert triggered", False, True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False, True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", False, True),
        ("HIP error: invalid device function", False, True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False, False),
    ],
)
def test_faults_are_told_apart_by_their_text(text: str, out_of_memory: bool, poisoned: bool) -> None:
    error = RuntimeError(text)
    assert (is_out_of_memory(error), is_poisoned(error)) == (out_of_memory, poisoned)


def test_a_failed_attempt_keeps_nothing_of_what_it_made() -> None:
    class Tensor:
        pass

    made: list[weakref.ref[Tensor]] = []

    def work() -> None:
        large = Tensor()
        made.append(weakref.ref(large))
        raise OUT_OF_MEMORY.with_traceback(None)

    result, said = attempt(work)
    assert result is None and "out of memory" in said
    OUT_OF_MEMORY.__traceback__ = None  # the module's own exception would hold the frame
    assert made[0]() is None


# --- files ---


def damaged(directory: Path, fault: str) -> str:
    """Damage a model and return the file that an error must name."""
    if fault == "no index":
        (directory / "model_index.json").unlink()
        return "model_index.json"
    if fault == "no weights":
        (directory / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        return "vae"
    name = "transformer/diffusion_pytorch_model.safetensors"
    file = directory / name
    if fault == "empty":
        file.write_bytes(b"")
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif fault == "no head":
        file.write_bytes(b"\xff" * 4096)
    elif fault == "no config":
        name = "text_encoder/config.json"
        (directory / name).unlink()
    elif fault == "no tokenizer":
        name = "tokenizer"
        for path in (directory / name).iterdir():
            path.unlink()
    elif fault == "config is no JSON":
        name = "transformer"
        (directory / name / "config.json").write_text("{", encoding="utf-8")
    else:
        part, key, value = fault.split()
        name = part
        path = directory / part / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config[key] = json.loads(value)
        path.write_text(json.dumps(config), encoding="utf-8")
    return name


@pytest.mark.parametrize(
    "fault",
    [
        "no index",
        "no weights",
        "empty",
        "truncated",
        "no head",
        "no config",
        "no tokenizer",
        "config is no JSON",
        "transformer n_layers 12",
        "transformer n_layers 4",
        "transformer dim 384",
        "transformer in_channels 16",
        "text_encoder num_hidden_layers 5",
        "text_encoder hidden_size 384",
        "vae latent_channels 16",
        "vae block_out_channels [24,48,72,128]",
    ],
)
def test_damaged_files_are_named(copy: Path, fault: str) -> None:
    name = damaged(copy, fault)
    with pytest.raises(WeightsError) as caught:
        load(copy)
    assert name in str(caught.value)
    assert "zbot weights" in str(caught.value)


def test_parts_of_different_models_are_named(copy: Path) -> None:
    # Both load alone; only together they are wrong.
    config = ZImageTransformer2DModel.load_config(copy / "transformer", local_files_only=True)
    ZImageTransformer2DModel.from_config(config | {"cap_feat_dim": 64}).save_pretrained(copy / "transformer")
    with pytest.raises(
        WeightsError, match=r"transformer/config\.json and text_encoder/config\.json.*\(64 and 192\)"
    ):
        load(copy)


def test_running_out_of_memory_while_loading_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("diffusers.AutoencoderKL.from_pretrained", fail)
    with pytest.raises(OutOfMemory, match="vae"):
        load()


# --- settings ---


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float16"},
        {"device": "cuda:7"},
        {"device": "abacus"},
        {"placement": "somewhere"},
        {"placement": "model_offload"},
        {"compile": "max"},
        {"attention": "flash_hub"},
        {"quantization": "int3"},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(options: dict[str, str]) -> None:
    if options.get("device") == "cuda:7" and torch.cuda.device_count() > 7:
        pytest.skip("this machine has eight cards")
    with pytest.raises(ConfigError) as caught:
        load(**{"device": "cpu"} | options)
    (value,) = options.values()
    assert value in str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "package"), [("int8", "bitsandbytes"), ("nf4", "bitsandbytes"), ("gguf:x", "gguf")]
)
def test_a_quantisation_without_its_package_names_the_package(quantization: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(WeightsError, match=f"pip install {package}"):
        load(quantization=quantization)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantisation_that_needs_a_card_says_so(monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    with pytest.raises(ConfigError, match=f"ZBOT_QUANTIZATION={quantization} needs a card .* is cpu"):
        load(quantization=quantization, device="cpu")


def test_bfloat16_draws_too() -> None:
    painter = load(dtype="bfloat16")
    assert painter.card.dtype == "bfloat16"
    assert pixels(draw(painter)).shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("free_gib", "placement"),
    [
        (78, "resident"),
        (31, "resident"),
        (23.2, "resident"),
        (22.5, "tiled"),
        (15.2, "encoder_offload"),
        (11.2, "group_offload"),
        (7.2, "group_offload"),
        (3.2, "group_offload"),
        (2.2, "sequential_offload"),
    ],
)
def test_the_placement_follows_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, free_gib: float, placement: str
) -> None:
    monkeypatch.setattr(_placement, "free_card_bytes", lambda _: int(free_gib * 2**30))
    size = _placement.ModelSize(
        text_encoder=2 * 4_022_468_096,
        transformer=2 * 6_154_908_736,
        vae=2 * 83_819_683,
        native_size=1024,
        transformer_dim=3840,
    )
    assert _placement.choose_placement("auto", torch.device("cuda", 0), size) == placement


# --- the unused tail ---

TEXTS = st.text(alphabet="ab c.苹果🍎", max_size=60)


@given(prompt=TEXTS, limit=st.integers(3, 40))
def test_the_unused_tail_changes_nothing_and_the_rest_is_all_used(prompt: str, limit: int) -> None:
    read = token_reader(tokenizer(), limit)
    tail = unused_tail(prompt, read)
    kept = prompt.removesuffix(tail)
    assert prompt == kept + tail
    assert read(kept) == read(prompt)
    if kept and tail:
        assert read(kept[:-1]) != read(prompt)


def tokenizer() -> Any:
    if not _tokenizers:
        from transformers import AutoTokenizer

        _tokenizers.append(AutoTokenizer.from_pretrained(TINY / "tokenizer", local_files_only=True))
    return _tokenizers[0]


_tokenizers: list[Any] = []
