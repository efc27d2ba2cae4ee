import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, ZImagePipeline

import zbot
from zbot import png
from zbot.engine import _cublaslt as cublaslt
from zbot.engine import _vae
from zbot.engine._fast import CAPTION_CACHE_BYTES, FastPath, unsupported
from zbot.engine._kernels import TorchKernels, attention, kernels_for
from zbot.engine._picture import filter_rows
from zbot.engine._plan import Cache

TINY = Path(zbot.__file__).parent / "models" / "tiny"
# What is stated in docs/performance-gpu.md: on the CPU in float32 the two agree to rounding.
LATENTS_TOLERANCE = 2e-5
LEVELS_TOLERANCE = 1


def load(dtype=torch.float32):
    pipe = ZImagePipeline.from_pretrained(TINY, local_files_only=True, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return load()


@pytest.fixture(scope="module")
def path(pipe):
    return FastPath(pipe)


def stock(pipe, prompt, *, seed=5, width=256, height=256, steps=4, output_type="latent"):
    return pipe(
        prompt,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type=output_type,
    ).images


def digest(picture):
    return hashlib.sha256(picture.wait().tobytes()).hexdigest()


PROMPTS = ["", "a red apple", "一只猫坐在月亮上", "a " * 27 + "dog", "a wooden table with two pears " * 9]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(("width", "height", "steps"), [(256, 256, 8), (192, 256, 3), (144, 80, 1)])
def test_latents_and_pixels_agree_with_the_stock_pipeline(pipe, path, prompt, width, height, steps):
    size = {"width": width, "height": height, "steps": steps}
    expected = stock(pipe, prompt, **size)
    latents = path.denoise(path.caption(prompt), seed=5, **size)
    assert latents.dtype == torch.float32
    assert (latents - expected).abs().max() < LATENTS_TOLERANCE * expected.abs().max()
    image = np.asarray(stock(pipe, prompt, **size, output_type="pil")[0]).astype(int)
    assert np.abs(path.decode(latents).wait() - image).max() <= LEVELS_TOLERANCE


def test_bfloat16_agrees_with_the_stock_pipeline_within_its_own_rounding():
    pipe = load(torch.bfloat16)
    expected = stock(pipe, "a red apple", steps=8)
    path = FastPath(pipe)
    latents = path.denoise(path.caption("a red apple"), seed=5, width=256, height=256)
    assert (latents - expected).norm() < 0.02 * expected.norm()


def test_the_stock_pipeline_still_draws_the_same_afterwards():
    pipe = load()
    before = stock(pipe, "a red apple")
    path = FastPath(pipe)
    path.draw("a red apple", seed=1, width=64, height=64, steps=2).wait()
    assert torch.equal(stock(pipe, "a red apple"), before)


def test_joined_weights_take_no_memory_twice():
    pipe = load()
    path = FastPath(pipe)
    blocks = [*path._noise_refiner, *path._context_refiner, *path._layers]
    joined = [part.weight for block in blocks for part in (block.qkv, block.halves)]
    joined += [part.weight for layer in path._encoder._layers for part in (layer._qkv, layer._halves)]
    parameters = [*pipe.transformer.parameters(), *pipe.text_encoder.parameters()]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in parameters + joined
    }
    assert sum(storages.values()) == sum(parameter.nbytes for parameter in parameters)
    before = [weight.data_ptr() for weight in joined]
    path.reset()
    blocks = [*path._noise_refiner, *path._context_refiner, *path._layers]
    again = [part.weight.data_ptr() for block in blocks for part in (block.qkv, block.halves)]
    assert again == before[: len(again)]


def test_the_caption_is_what_the_pipeline_encodes(pipe, path):
    for prompt in PROMPTS:
        expected = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0][0]
        caption = path.caption(prompt)
        assert caption.tokens == len(expected)
        assert (caption.prompt_embeds - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_is_over_512_tokens_is_cut_as_the_pipeline_cuts_it(monkeypatch):
    pipe = load()
    monkeypatch.setattr(pipe.tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    prompt = "pear apple moon " * 300
    expected = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0][0]
    caption = FastPath(pipe).caption(prompt)
    assert caption.tokens == len(expected) == 512
    assert (caption.prompt_embeds - expected).abs().max() < 1e-5 * expected.abs().max()


def test_another_text_encoder_is_run_by_the_pipeline(monkeypatch):
    pipe = load()
    expected = pipe.encode_prompt("a red apple", do_classifier_free_guidance=False)[0][0]
    monkeypatch.setattr(pipe.text_encoder, "_hf_hook", object(), raising=False)
    assert torch.equal(FastPath(pipe).caption("a red apple").prompt_embeds, expected)


def test_a_remembered_caption_is_not_encoded_again_and_is_bit_identical(pipe, monkeypatch):
    path = FastPath(pipe)
    encoded = []
    encode = path._encoder.encode
    monkeypatch.setattr(path._encoder, "encode", lambda prompt: encoded.append(prompt) or encode(prompt))
    assert not path.knows("a blue cup")
    first = path.caption("a blue cup")
    assert path.knows("a blue cup")
    assert path.caption("a blue cup") is first
    assert encoded == ["a blue cup"]
    path.reset()
    again = path.caption("a blue cup")
    assert encoded == ["a blue cup"] * 2
    assert torch.equal(again.prompt_embeds, first.prompt_embeds)
    assert torch.equal(again.refined, first.refined)


def test_the_caches_forget_the_longest_unused_first():
    cache = Cache(10, len)
    for key in "abc":
        cache.get(key, lambda key=key: key * 4)
    assert [key in cache for key in "abc"] == [False, True, True]
    cache.get("b", str)
    cache.get("d", lambda: "d" * 4)
    assert [key in cache for key in "bcd"] == [True, False, True]
    cache.get("large", lambda: "x" * 100)
    assert "large" in cache
    assert "d" not in cache
    assert CAPTION_CACHE_BYTES > 512 * (2560 + 3840) * 2


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(path):
    pictures = [path.draw("a red apple", seed=seed, width=64, height=64, steps=2) for seed in (7, 7, 8)]
    assert digest(pictures[0]) == digest(pictures[1]) != digest(pictures[2])
    assert digest(FastPath(load()).draw("a red apple", seed=7, width=64, height=64, steps=2)) == digest(
        pictures[0]
    )


def test_each_step_is_reported_with_its_latents(path):
    heard = []
    latents = path.denoise(
        path.caption("a red apple"),
        seed=5,
        width=96,
        height=64,
        steps=5,
        on_step=lambda step, steps, latents: heard.append((step, steps, latents.clone())),
    )
    assert [(step, steps) for step, steps, _ in heard] == [(step, 5) for step in range(1, 6)]
    assert all(one.shape == latents.shape for _, _, one in heard)
    assert torch.equal(heard[-1][2], latents)
    assert not torch.equal(heard[0][2], latents)


def test_what_follows_a_drawing_is_queued_before_its_last_step_is_reported(path):
    order = []
    latents = path.denoise(
        path.caption("a red apple"),
        seed=5,
        width=64,
        height=64,
        steps=3,
        on_step=lambda step, steps, latents: order.append(step),
        on_queued=order.append,
    )
    assert order[0:2] == [1, 2] and order[2] is latents and order[3] == 3


def test_raising_in_a_step_stops_the_drawing_and_the_next_one_works(path):
    class CancelledError(Exception):
        pass

    heard = []

    def cancel(step, _steps, _latents):
        heard.append(step)
        if step == 3:
            raise CancelledError

    whole = digest(path.draw("a red apple", seed=5, width=64, height=64, steps=6))
    with pytest.raises(CancelledError):
        path.draw("a red apple", seed=5, width=64, height=64, steps=6, on_step=cancel)
    assert heard == [1, 2, 3]
    assert digest(path.draw("a red apple", seed=5, width=64, height=64, steps=6)) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 100}, "multiples"),
        ({"height": 0}, "multiples"),
        ({"width": 4096}, "at most"),
        ({"height": 4096}, "at most"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_the_model_cannot_draw_is_refused_before_anything_runs(path, change, said):
    size = {"width": 64, "height": 64, "steps": 2}
    with pytest.raises(ValueError, match=said):
        path.denoise(path.caption(""), seed=1, **size | change)


def test_pipelines_that_it_cannot_draw_with_are_named():
    pipe = load()
    assert unsupported(pipe) is None
    linear = pipe.transformer.layers[0].attention.to_q
    pipe.transformer.layers[0].attention.to_q = torch.nn.Linear(192, 192, bias=True)
    assert "layers" in unsupported(pipe)
    pipe.transformer.layers[0].attention.to_q = linear
    pipe.transformer._hf_hook = object()
    assert "offload" in unsupported(pipe)
    with pytest.raises(ValueError, match="offload"):
        FastPath(pipe)
    del pipe.transformer._hf_hook
    scheduler, pipe.scheduler = pipe.scheduler, DDIMScheduler()
    assert "scheduler" in unsupported(pipe)
    pipe.scheduler = scheduler
    pipe.transformer.layers[0].half()
    assert "bfloat16" in unsupported(pipe)


ADAPTED = {
    "a LoRA of the main layers": r"layers\.\d+\.(attention\.(to_q|to_v|to_out\.0)|feed_forward\.w[12])",
    "a LoRA of the context refiner": r"context_refiner\.\d+\.(attention\.to_k|feed_forward\.w3)",
    "a LoRA beside the products": r"(layers\.\d+\.adaLN_modulation\.0|cap_embedder\.1|all_x_embedder\.2-1)",
    "a LoKr": None,
}


def add(pipe, name, adapter="default"):
    peft = pytest.importorskip("peft")
    if ADAPTED[name] is not None:
        config = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=ADAPTED[name])
    else:
        config = peft.LoKrConfig(r=2, init_weights=False, target_modules=r"layers\.\d+\.attention\.to_[qk]")
    pipe.transformer.add_adapter(config, adapter_name=adapter)


@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapter_counts_after_reset_and_its_removal_restores_every_bit(name):
    pipe = load()
    path = FastPath(pipe)

    def latents():
        return path.denoise(path.caption("a red apple"), seed=5, width=64, height=64, steps=2)

    def expected():
        return stock(pipe, "a red apple", width=64, height=64, steps=2)

    plain = latents()
    torch.manual_seed(0)
    add(pipe, name)
    path.reset()
    adapted = latents()
    assert (adapted - plain).abs().max() > 1e-2
    assert (adapted - expected()).abs().max() < LATENTS_TOLERANCE * expected().abs().max()
    pipe.set_adapters(["default"], adapter_weights=[0.3])
    path.reset()
    weaker = latents()
    assert (weaker - adapted).abs().max() > 1e-3
    assert (weaker - expected()).abs().max() < LATENTS_TOLERANCE * expected().abs().max()
    pipe.unload_lora_weights()
    path.reset()
    assert torch.equal(latents(), plain)


@pytest.mark.filterwarnings("ignore:Already found a")
def test_several_loras_at_once_are_added_up_and_disabled_ones_are_not():
    pipe = load()
    torch.manual_seed(0)
    for adapter, name in (("one", "a LoRA of the main layers"), ("other", "a LoRA of the context refiner")):
        add(pipe, name, adapter)
    path = FastPath(pipe)
    for weights in ([1.0, 1.0], [0.5, -2.0], [1.0, 0.0]):
        pipe.set_adapters(["one", "other"], adapter_weights=weights)
        path.reset()
        expected = stock(pipe, "", width=64, height=64, steps=2)
        latents = path.denoise(path.caption(""), seed=5, width=64, height=64, steps=2)
        assert (latents - expected).abs().max() < LATENTS_TOLERANCE * expected.abs().max()
    pipe.transformer.disable_adapters()
    path.reset()
    expected = stock(pipe, "", width=64, height=64, steps=2)
    latents = path.denoise(path.caption(""), seed=5, width=64, height=64, steps=2)
    assert (latents - expected).abs().max() < LATENTS_TOLERANCE * expected.abs().max()


def test_a_plain_lora_needs_no_second_product_of_the_layer_itself(monkeypatch):
    pipe = load()
    add(pipe, "a LoRA of the main layers")
    path = FastPath(pipe)
    for module in pipe.transformer.layers.modules():
        if hasattr(module, "base_layer"):
            monkeypatch.setattr(module, "forward", None)
    path.draw("a red apple", seed=5, width=64, height=64, steps=1).wait()


@pytest.mark.parametrize("tiled", [False, True])
def test_latents_that_are_not_finite_are_told(path, pipe, tiled):
    latents = torch.zeros(1, 8, 16, 16)
    if tiled:
        pipe.vae.enable_tiling()
    assert path.decode(latents).is_finite()
    latents[0, 0, 3, 3] = torch.inf
    assert not path.decode(latents).is_finite()
    pipe.vae.disable_tiling()


def test_a_vae_that_is_told_to_decodes_in_tiles(path, pipe, monkeypatch):
    latents = torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    called = []
    tiled_decode = pipe.vae.tiled_decode
    monkeypatch.setattr(
        pipe.vae, "tiled_decode", lambda *args, **more: called.append(1) or tiled_decode(*args, **more)
    )
    monkeypatch.setattr(pipe.vae, "tile_latent_min_size", 16)
    path.decode(latents).wait()
    assert not called
    pipe.vae.enable_tiling()
    path.decode(latents).wait()
    pipe.vae.disable_tiling()
    assert called


def test_a_vae_with_attention_and_quantisation_layers_is_decoded_alike():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=[16, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=8,
        use_post_quant_conv=True,
        mid_block_add_attention=True,
    ).eval()
    assert _vae.unsupported_vae(vae) is None
    latents = torch.randn(1, 4, 12, 20)
    with torch.inference_mode():
        expected = vae.decode(latents, return_dict=False)[0]
        decoded = _vae.decode(vae, TorchKernels(), latents)
        assert (decoded - expected).abs().max() < 1e-5 * expected.abs().max()
        vae.decoder.conv_act = torch.nn.ReLU()
    assert _vae.unsupported_vae(vae) is not None


def test_attention_in_pieces_is_attention(monkeypatch):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 50, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    monkeypatch.setattr(_vae, "ATTENTION_SCORES", 170)
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype=None, out=None: torch.matmul(a, b, out=out))
    pieces = _vae._attention_in_pieces(TorchKernels(), query, key, value)
    assert torch.allclose(pieces, expected, atol=1e-6)


def test_the_png_is_that_of_the_pixels(path):
    picture = path.draw("a red apple", seed=5, width=64, height=96, steps=2)
    assert picture.wait().shape == (96, 64, 3)
    assert picture.png({"parameters": "x"}) == png.encode(picture.wait(), {"parameters": "x"})


@pytest.mark.parametrize("levels", [2, 9, 256])
def test_the_card_filters_rows_as_the_processor_does(levels):
    rgb = torch.randint(
        0, levels, (130, 57, 3), generator=torch.Generator().manual_seed(levels), dtype=torch.uint8
    )
    assert np.array_equal(filter_rows(rgb).numpy(), png.filter_rows(rgb.numpy().reshape(130, -1), 0, 130))


def test_warming_up_draws_each_size_and_may_be_left(path):
    items = path.warm_up([(64, 64), (96, 64), (4096, 64)])
    assert next(items) == (64, 64)
    assert next(items) == (96, 64)
    items.close()


def test_a_processor_gets_the_plain_kernels():
    assert isinstance(kernels_for(torch.device("cpu")), TorchKernels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
class TestOnTheCard:
    """The Triton kernels and the overlapped decode."""

    @pytest.fixture(scope="class")
    def path(self):
        return FastPath(load(torch.bfloat16).to("cuda"))

    def test_the_triton_kernels_agree_with_the_plain_ones(self, path):
        assert path.kernels.name == "triton"
        plain = FastPath(load(torch.bfloat16).to("cuda"), kernels=TorchKernels())
        drawn = [
            one.denoise(one.caption("a red apple"), seed=5, width=256, height=256) for one in (path, plain)
        ]
        assert (drawn[0] - drawn[1]).norm() < 0.02 * drawn[1].norm()
        pixels = [one.decode(drawn[1]).wait().astype(int) for one in (path, plain)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 6

    @pytest.mark.parametrize("rows", [1_056, 1_088])
    def test_our_attention_is_attention(self, path, rows):
        qkv = torch.randn(rows, 3 * 30 * 128, device="cuda", dtype=torch.bfloat16)
        exact = attention(qkv.float(), 30)
        mixed = path.kernels.attention(qkv, 30)
        assert (mixed.float() - exact).norm() < 0.003 * exact.norm()
        assert torch.equal(mixed, path.kernels.attention(qkv, 30))

    @pytest.mark.parametrize("rows", [512, 832, 1_088, 2_368, 4_160, 9_280])
    @pytest.mark.parametrize(
        ("width", "depth"), [(11_520, 3_840), (3_840, 3_840), (20_480, 3_840), (3_840, 10_240)]
    )
    def test_the_product_we_choose_has_the_bits_of_torchs(self, rows, width, depth):
        x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(width, depth, device="cuda", dtype=torch.bfloat16) * 0.02
        assert torch.equal(cublaslt.linear(x, weight), torch.nn.functional.linear(x, weight))
        if torch.cuda.get_device_capability()[0] == 9 and rows > 512:
            assert cublaslt._products[rows, width, depth, x.dtype, x.device] is not None

    def test_recorded_graphs_and_warm_shapes_change_no_bit(self, path):
        before = path.draw("a red apple", seed=5, width=256, height=192).png({})
        for _ in path.warm_up([(256, 192)]):
            pass
        path.reset()
        assert path.draw("a red apple", seed=5, width=256, height=192).png({}) == before

    def test_pictures_drawn_one_over_the_other_are_those_drawn_alone(self, path):
        alone = [path.draw("a red apple", seed=seed, width=256, height=256) for seed in range(4)]
        alone = [picture.png({}) for picture in alone if picture.wait() is not None]
        together = [
            path.draw("a red apple", seed=seed, width=256, height=256, on_step=lambda *_: None)
            for seed in range(4)
        ]
        assert [picture.png({}) for picture in together] == alone
