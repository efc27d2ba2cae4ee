"""Loads a ZImagePipeline from a local directory part by part, and says which file is to blame when it cannot."""

# diffusers exports through a lazy module that pyright cannot see.
# pyright: reportPrivateImportUsage=false

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from zbot.engine._faults import first_line, is_out_of_memory, release_memory
from zbot.engine._files import PARTS, REPAIR, weight_files
from zbot.engine._fp8 import quantize_blocks
from zbot.engine._options import EngineOptions
from zbot.engine._placement import ModelSize
from zbot.errors import ConfigError, OutOfMemory, WeightsError
from zbot.weights.check import read_json
from zbot.weights.tensors import read_spans

log = logging.getLogger(__name__)

OnPart = Callable[[str, int, int], None]

# Where they are called from; private, so that another version may have none.
_RESERVES = (
    (diffusers.models.modeling_utils, "_caching_allocator_warmup"),
    (transformers.modeling_utils, "caching_allocator_warmup"),
)

# By the names of _files.PARTS, whatever a model's own index says.
_CLASSES: dict[str, Any] = {
    "tokenizer": transformers.AutoTokenizer,
    "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    "text_encoder": transformers.Qwen3Model,
    "vae": diffusers.AutoencoderKL,
    "transformer": diffusers.ZImageTransformer2DModel,
}
_QUANTIZATIONS = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "gguf": "gguf"}
# Of the transformer in bfloat16: the numbers, their scales, and what stays as it is. Reckoned, not measured.
_QUANTIZED_FRACTION = {"int8": 0.53, "nf4": 0.31, "float8": 0.55}


def measure(directory: Path, dtype: torch.dtype) -> ModelSize:
    """Return what the parts will take in this dtype, from the heads of the files."""
    parts = {
        part: sum(
            _count(span.shape)
            for path in sorted((directory / part).glob("*.safetensors"))
            for span in read_spans(path)[0]
        )
        for part in ("text_encoder", "transformer", "vae")
    }
    transformer, _ = read_json(directory, "transformer/config.json")
    return ModelSize(
        **{part: count * dtype.itemsize for part, count in parts.items()},
        native_size=native_size(directory),
        transformer_dim=int(transformer.get("dim", 3840)),
    )


def quantized_size(size: ModelSize, options: EngineOptions) -> ModelSize:
    """Return the sizes with the transformer quantised as the options say."""
    kind, _, file = options.quantization.partition(":")
    if options.dtype == "float8":
        kind = options.dtype
    if kind == "gguf":
        path = Path(file)
        return replace(size, transformer=path.stat().st_size if path.is_file() else size.transformer)
    return replace(size, transformer=int(size.transformer * _QUANTIZED_FRACTION.get(kind, 1.0)))


def native_size(directory: Path) -> int:
    """Return the square side the model was made for, in pixels: the sample size of its VAE."""
    vae, _ = read_json(directory, "vae/config.json")
    return int(vae.get("sample_size", 1024))


def load_parts(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    onto: torch.device | None,
    options: EngineOptions,
    on_part: OnPart,
) -> dict[str, Any]:
    """Load every part in `dtype`, shard by shard straight onto the device `onto`, or into host memory for None.

    A transformer that is to draw in 8 bits is rounded on `device`, block by block.

    Raises: WeightsError, OutOfMemory, ConfigError.
    """
    parts: dict[str, Any] = {}
    files, done = weight_files(directory), 0
    for name in PARTS:
        on_part(name, done, sum(files.values()))
        try:
            parts[name] = _load_part(directory, name, dtype, device, onto, options)
            if name == "transformer" and options.dtype == "float8":
                quantize_blocks((*parts[name].noise_refiner, *parts[name].layers), device)
            done += files[name]
            continue
        except (WeightsError, ConfigError):
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                log.exception("the %s cannot be loaded", name)
                raise WeightsError(
                    f"{directory / name} cannot be loaded: {first_line(error)}; {REPAIR}"
                ) from error
            said = first_line(error)
        # Outside the `except`, whose traceback would keep what was loaded so far.
        parts.clear()
        release_memory()
        raise OutOfMemory(f"too little memory to load the {name.replace('_', ' ')}: {said}")
    on_part("ready", done, done)
    _check_fit(directory, parts)
    return parts


def _load_part(
    directory: Path,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    onto: torch.device | None,
    options: EngineOptions,
) -> Any:
    cls, where = _CLASSES[name], {"local_files_only": True}
    if name == "tokenizer":
        return cls.from_pretrained(directory / name, **where)
    if name == "scheduler":
        return cls.from_pretrained(directory, subfolder=name, **where)
    _spare_the_allocator()
    settings: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **where}
    if name == "transformer" and options.quantization != "none":
        return _load_quantized(directory, dtype, device, options.quantization)
    if onto is not None and onto.type == "cuda":
        settings["device_map"] = {"": str(onto)}
    model, info = cls.from_pretrained(directory, subfolder=name, **settings)
    # Of the text encoder a language model's head may be left over: it is not used.
    kinds = ["missing_keys", "mismatched_keys", "error_msgs"] + ["unexpected_keys"] * (name != "text_encoder")
    for kind in kinds:
        if found := info.get(kind):
            raise WeightsError(
                f"{directory / name}: its config.json and its weights do not belong together "
                f"({len(found)} {kind.replace('_', ' ')}, first {sorted(map(str, found))[0]}); {REPAIR}"
            )
    return model


def _spare_the_allocator() -> None:
    """Keep the libraries from reserving a part's whole room on the card in one piece before they fill it.

    Such a piece can be given back only as a whole, and what the fast path frees when it joins weights would be holes in
    it: 7 GiB of them, on a card of 24.
    """
    for module, name in _RESERVES:
        if hasattr(module, name):
            setattr(module, name, _reserve_nothing)


def _reserve_nothing(*_: object, **__: object) -> None:
    """Stand in for what reserves."""


def _load_quantized(directory: Path, dtype: torch.dtype, device: torch.device, quantization: str) -> Any:
    kind, _, file = quantization.partition(":")
    if kind not in _QUANTIZATIONS:
        raise ConfigError(f"the quantisation {quantization!r} is unknown; use none, int8, nf4 or gguf:FILE")
    try:
        __import__(_QUANTIZATIONS[kind])
    except ImportError as error:
        package = _QUANTIZATIONS[kind]
        raise WeightsError(f"{kind} needs the package {package}: run `pip install {package}`") from error
    if kind == "gguf":
        if not Path(file).is_file():
            raise WeightsError(
                f"the GGUF file {file!r} is not there; set gguf:FILE to the transformer's GGUF file"
            )
        # Without a local config diffusers asks the hub even for a local file.
        return _CLASSES["transformer"].from_single_file(
            file,
            config=str(directory),
            subfolder="transformer",
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
            dtype=dtype,
            local_files_only=True,
        )
    if device.type != "cuda":
        raise ConfigError(
            f"ZBOT_QUANTIZATION={kind} needs a card of NVIDIA's and the device is {device.type}; "
            "set it to none, or to gguf:FILE"
        )
    config = (
        diffusers.BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else diffusers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    )
    return _CLASSES["transformer"].from_pretrained(
        directory,
        subfolder="transformer",
        quantization_config=config,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
    )


def _check_fit(directory: Path, parts: dict[str, Any]) -> None:
    transformer, vae, text_encoder = parts["transformer"], parts["vae"], parts["text_encoder"]
    pairs = (
        ("transformer", transformer.config.in_channels, "vae", vae.config.latent_channels, "latent channels"),
        (
            "transformer",
            transformer.config.cap_feat_dim,
            "text_encoder",
            text_encoder.config.hidden_size,
            "text width",
        ),
    )
    for first, its, second, other, what in pairs:
        if its != other:
            raise WeightsError(
                f"{directory}: {first}/config.json and {second}/config.json disagree on the {what} ({its} and {other}); "
                f"the parts are of different models; {REPAIR}"
            )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
