"""Products in 8 bits, on the processor: the same rounding as on a card, by the same layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline

from zbot.cli.compare import first_cause
from zbot.engine import _fp8 as fp8
from zbot.engine import _placement, zimage
from zbot.engine._fast import FastPath
from zbot.engine._fp8 import Form, Fp8Linear, Rows
from zbot.engine._kernels import TorchKernels, kernels_for
from zbot.engine._load import quantized_size
from zbot.engine._options import EngineOptions
from zbot.engine._products import Product
from zbot.errors import ConfigError
from zbot.images import read_recipe
from zbot.request import ImageRequest

TINY = Path(__file__).parents[3] / "zbot" / "models" / "tiny"
HERE = torch.device("cpu")
SMALL = ImageRequest(prompt="a red apple", seed=7, width=128, height=128, steps=2)
SIZE = {"width": 128, "height": 128}


def rounded_pipe() -> Any:
    pipe = ZImagePipeline.from_pretrained(TINY, local_files_only=True, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    fp8.quantize_blocks((*pipe.transformer.noise_refiner, *pipe.transformer.layers), HERE)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The tiny model with its blocks in 8 bits."""
    return rounded_pipe()


@pytest.fixture(scope="module")
def path(pipe: Any) -> FastPath:
    return FastPath(pipe)


def stock_step(pipe: Any) -> torch.Tensor:
    rng = torch.Generator("cpu").manual_seed(5)
    settings = {"num_inference_steps": 1, "guidance_scale": 0.0, "generator": rng, "output_type": "latent"}
    return pipe("a red apple", **SIZE, **settings).images


def fast_step(path: FastPath) -> torch.Tensor:
    return path.denoise(path.caption("a red apple"), seed=5, **SIZE, steps=1)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


# --- the numbers ---


def test_a_number_moves_by_a_sixteenth_of_itself_at_most_and_small_ones_by_little_of_the_largest() -> None:
    x = torch.randn(64, 300, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 64)[:, None]
    values, scales = fp8.quantize(x)
    moved = (values.float() * scales - x).abs()
    assert bool((moved <= (x.abs() / 16).maximum(scales * 2**-10) * 1.001).all())
    assert torch.allclose(values.float().abs().amax(dim=1), torch.full((64,), 448.0))


def test_zeros_stay_zeros_and_what_is_not_finite_stays_visible() -> None:
    x = torch.zeros(3, 8)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    values, scales = fp8.quantize(x)
    back = values.float() * scales
    assert not back[0].any()
    assert not torch.isfinite(back[1]).all() and not torch.isfinite(back[2]).all()


def test_a_product_is_that_of_the_rounded_numbers() -> None:
    rng = torch.Generator().manual_seed(2)
    x, weight = torch.randn(7, 64, generator=rng), torch.randn(48, 64, generator=rng)
    layer = Fp8Linear(*fp8.quantize(weight), torch.float32)
    values, scales = fp8.quantize(x)
    expected = (values.double() * scales) @ (layer.weight.double() * layer.scales).T
    assert torch.allclose(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert 0 < distance(layer(x), x @ weight.T) < 0.05
    assert layer(x.view(1, 7, 64)).shape == (1, 7, 48)


@pytest.mark.parametrize("form", Form)
def test_the_steps_between_products_give_what_the_next_product_reads(form: Form) -> None:
    kernels, rng = TorchKernels(), torch.Generator().manual_seed(3)
    x, weight = torch.randn(5, 32, generator=rng).bfloat16(), torch.randn(32, generator=rng).bfloat16()
    for exact, made in (
        (kernels.rms_norm(x, weight, weight, 1e-5), kernels.rms_norm(x, weight, weight, 1e-5, form)),
        (
            kernels.add_then_rms_norm_(x.clone(), x, weight, None, weight, None, 1e-5),
            kernels.add_then_rms_norm_(x.clone(), x, weight, None, weight, None, 1e-5, form),
        ),
        (kernels.gated_silu(x), kernels.gated_silu(x, form)),
        (x, kernels.in_form(x, form)),
    ):
        assert isinstance(exact, torch.Tensor)
        if form is Form.EXACT:
            assert isinstance(made, torch.Tensor) and torch.equal(made, exact)
            continue
        assert isinstance(made, Rows)
        values, scales = fp8.quantize(exact)
        assert torch.equal(made.values.float(), values.float()) and torch.equal(made.scales, scales)
        assert (made.exact is not None) == (form is Form.BOTH)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("form", [Form.FP8, Form.BOTH])
def test_the_cards_kernels_round_as_the_plain_ones_do(form: Form) -> None:
    if torch.cuda.get_device_capability() < fp8.CAPABILITY:
        pytest.skip("this card has no products in fp8")
    plain, ours = TorchKernels(), kernels_for(torch.device("cuda"))
    rng = torch.Generator("cuda").manual_seed(5)
    x, y, wide = (
        torch.randn(100, width, device="cuda", generator=rng).bfloat16() for width in (3840, 3840, 20480)
    )
    weight = torch.randn(3840, device="cuda", generator=rng).bfloat16()
    for step in (
        lambda kernels: kernels.rms_norm(x, weight, weight, 1e-5, form),
        lambda kernels: kernels.add_then_rms_norm_(x.clone(), y, weight, weight, weight, weight, 1e-5, form),
        lambda kernels: kernels.gated_silu(wide, form),
        lambda kernels: kernels.in_form(x, form),
    ):
        one, other = step(ours), step(plain)
        # A sum in another order moves a number of bfloat16 by one step at times, and that of fp8 with it.
        assert distance(one.values.float() * one.scales, other.values.float() * other.scales) < 0.03
        assert (one.exact is None) == (form is Form.FP8)


# --- the transformer ---


def test_the_blocks_weights_are_rounded_once_and_lie_as_one_product_reads_them(pipe: Any) -> None:
    path = FastPath(pipe)
    exact = {"context_refiner", "cap_embedder", "t_embedder", "all_x_embedder", "all_final_layer"}
    for name, module in pipe.transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            of_a_block = name.split(".")[0] in ("layers", "noise_refiner") and "adaLN" not in name
            assert isinstance(module, Fp8Linear) == of_a_block, name
            assert of_a_block or name.split(".")[0] in exact or "adaLN" in name
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for parameter in pipe.transformer.parameters()
    }
    assert sum(storages.values()) == sum(parameter.nbytes for parameter in pipe.transformer.parameters())
    for block in (*path._noise_refiner, *path._layers):
        for product in (block.qkv, block._out, block.halves, block._down):
            assert product.weight.dtype is fp8.DTYPE and product.reads is Form.FP8
            assert product.weight.untyped_storage().data_ptr() in storages


def test_both_paths_draw_the_same_rounded_arithmetic(pipe: Any, path: FastPath) -> None:
    exact = ZImagePipeline.from_pretrained(TINY, local_files_only=True, dtype=torch.float32)
    exact.set_progress_bar_config(disable=True)
    # A sum in another order may round a number to its neighbour in 8 bits: the two are nearer to each other than to
    # the exact one, and not equal.
    between, rounding = (
        distance(fast_step(path), stock_step(pipe)),
        distance(fast_step(path), stock_step(exact)),
    )
    assert between < 0.6 * rounding < 0.6 * 0.06


def test_a_lora_is_added_exactly_to_the_rounded_product() -> None:
    peft = pytest.importorskip("peft")
    rng = torch.Generator().manual_seed(4)
    x, weight = torch.randn(7, 64, generator=rng), torch.randn(48, 64, generator=rng)
    base = Fp8Linear(*fp8.quantize(weight), torch.float32)
    model = torch.nn.Sequential(base)
    config = peft.LoraConfig(r=4, lora_alpha=2, init_lora_weights=False, target_modules=["0"])
    wrapped = peft.inject_adapter_in_model(config, model)[0].requires_grad_(False)
    assert wrapped.lora_A["default"].weight.dtype is torch.float32
    product = Product(wrapped)
    assert product.reads is Form.BOTH
    expected = base(x) + wrapped.lora_B["default"](wrapped.lora_A["default"](x)) * 0.5
    assert torch.allclose(product(fp8.in_form(x, Form.BOTH)), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(wrapped(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["LoraConfig", "LoKrConfig"])
def test_adapters_draw_on_rounded_weights_and_leave_nothing_behind(kind: str) -> None:
    peft = pytest.importorskip("peft")
    pipe = rounded_pipe()
    path = FastPath(pipe)
    before = fast_step(path)
    torch.manual_seed(0)
    no_start = {"init_lora_weights" if kind == "LoraConfig" else "init_weights": False}
    pipe.transformer.add_adapter(
        getattr(peft, kind)(
            r=2, target_modules=r"layers\.\d+\.(attention\.to_q|feed_forward\.w2)", **no_start
        )
    )
    path.reset()
    with torch.inference_mode():
        assert distance(fast_step(path), before) > 0.1
        assert distance(fast_step(path), stock_step(pipe)) < 0.05
    pipe.unload_lora_weights()
    path.reset()
    assert torch.equal(fast_step(path), before)


# --- as a setting ---


def load(**options: Any) -> zimage.Painter:
    settings = {
        "model": "tiny",
        "gives_way": False,
        "preview": False,
        "device": "cpu",
        "dtype": "float8",
    } | options
    return zimage.load(EngineOptions(model_dir=str(TINY), **settings), lambda *_: None)


def test_without_a_card_that_can_it_is_refused_with_the_repair() -> None:
    with pytest.raises(
        ConfigError, match=r"ZBOT_PRECISION=fp8 needs .* 8\.9 .* is cpu; set ZBOT_PRECISION=auto"
    ):
        load()


@pytest.mark.parametrize(("capability", "refused"), [((8, 6), True), ((8, 9), False), ((9, 0), False)])
def test_it_depends_on_what_the_card_can_multiply(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    card = torch.device("cuda", 0)
    if refused:
        with pytest.raises(ConfigError, match=r"this one has 8\.6"):
            _placement.choose_dtype("float8", card, 0)
    else:
        assert _placement.choose_dtype("float8", card, 0) is torch.bfloat16


def test_two_ways_to_fewer_bits_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="ZBOT_QUANTIZATION=nf4"):
        load(quantization="nf4")


def test_a_placement_that_moves_the_transformer_is_refused() -> None:
    size = _placement.ModelSize(text_encoder=1, transformer=1, vae=1, native_size=1024, transformer_dim=3840)
    with pytest.raises(ConfigError, match="resident, tiled, encoder_offload"):
        _placement.choose_placement("group_offload", torch.device("cuda", 0), size, quantized=True)


def test_a_smaller_transformer_fits_smaller_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    full = _placement.ModelSize(
        text_encoder=2 * 4_022_468_096,
        transformer=2 * 6_154_908_736,
        vae=2 * 83_819_683,
        native_size=1024,
        transformer_dim=3840,
    )
    size = quantized_size(full, EngineOptions(model_dir="", model="", dtype="float8"))
    # 32 blocks in 8 bits, with four bytes for each of their outputs, and the rest in 16.
    rounded = 32 * (4 * 3840**2 + 3 * 3840 * 10240)
    assert size.transformer == pytest.approx(full.transformer - rounded, rel=0.03)
    for free_gib, placement in ((20, "resident"), (17, "tiled"), (10, "encoder_offload")):
        monkeypatch.setattr(_placement, "free_card_bytes", lambda _, free=free_gib: int(free * 2**30))
        card = torch.device("cuda", 0)
        assert _placement.choose_placement("auto", card, size, quantized=True) == placement


def test_the_recipe_names_it_and_a_comparison_does_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_placement, "_why_no_fp8", lambda _: None)
    recipes = []
    for painter in (load(), load(compile="off"), load(dtype="bfloat16")):
        drawn = painter.finish(painter.denoise(SMALL, lambda *_: None))
        recipes.append(read_recipe(drawn.png))
    fast, stock, exact = recipes
    assert fast.dtype == stock.dtype == "float8" and fast.options["lossy"]
    assert fast.options["path"].startswith("fast") and stock.options["path"] == "stock"
    assert "lossy" not in exact.options
    assert first_cause(exact, replace(fast, versions=exact.versions)) == (
        "another dtype: bfloat16 then, float8 now"
    )
