"""Puts one LoRA at a time into the transformer, from a file in any of the usual formats, and takes it out again."""

# diffusers exports through a lazy module that pyright cannot see, and is partly untyped.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from zbot import loras
from zbot.engine._faults import first_line, is_out_of_memory, is_poisoned
from zbot.errors import LoraError
from zbot.weights.tensors import BadTensorFile, read_spans

log = logging.getLogger(__name__)

MAX_LORA_BYTES = 2 * 2**30  # rank 128 in every layer of Z-Image-Turbo is 1.3 GB in fp32
_ADAPTER = "zbot"
_COMPONENT = "transformer."
_KOHYA = "lora_unet_"
_NATIVE = "diffusion_model."
_PREFIXES = ("base_model.model.", _NATIVE, _COMPONENT)
# The original release of the model, and ComfyUI with it, call some modules otherwise than diffusers.
_ORIGINAL_NAMES = (("x_embedder.", "all_x_embedder.2-1."), ("final_layer.", "all_final_layer.2-1."))
_FUSED, _SPLIT = ".attention.qkv.", tuple(f".attention.to_{part}." for part in "qkv")
_OUT, _TO_OUT = ".attention.out.", ".attention.to_out.0."
_UP = (".lora_B.weight", ".lora_up.weight", ".lora_B.default.weight")
_METADATA = "lora_adapter_metadata"  # where diffusers writes rank and alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attached:
    """The LoRA that is in the transformer now, and the state of its file when it was read."""

    path: Path
    stamp: tuple[int, int]
    sha256: str
    scale: float | None = None  # until it is set


class Loras:
    """The LoRA files that a pipeline can draw with; call from the thread that draws."""

    def __init__(
        self,
        pipe: Any,
        *,
        dtype: torch.dtype,
        directory: str,
        files: Mapping[str, str],
        on_change: Callable[[], None],
    ) -> None:
        """Begin without any; `on_change` is called whenever what the transformer computes has become another."""
        self._pipe = pipe
        self._dtype = dtype
        self._on_change = on_change
        self._directory = directory
        self._files = files
        self._attached: _Attached | None = None

    def attach(self, name: str, scale: float) -> str:
        """Have the transformer draw with this LoRA at this strength, and no other; return its file's SHA-256.

        Raises: LoraError naming the file; nothing is attached then.
        """
        path = self._find(name)
        try:
            state = path.stat()
        except OSError as error:
            self.detach()
            raise LoraError(f"the LoRA file {path} cannot be read: {error.strerror}") from error
        stamp = (state.st_mtime_ns, state.st_size)
        if self._attached is None or (self._attached.path, self._attached.stamp) != (path, stamp):
            self.detach()
            self._attached = _Attached(path=path, stamp=stamp, sha256=self._load(path))
        if self._attached.scale != scale:
            # Not fused into the weights: taking it out again would leave rounding errors in them.
            self._pipe.set_adapters([_ADAPTER], adapter_weights=[scale])
            self._attached = replace(self._attached, scale=scale)
            self._on_change()
        return self._attached.sha256

    def detach(self) -> None:
        """Leave the transformer as it was before any LoRA, bit for bit."""
        if self._attached is not None:
            self._attached = None
            self._pipe.unload_lora_weights()
            self._on_change()

    def _find(self, name: str) -> Path:
        if name in self._files:
            return Path(self._files[name])
        path = loras.find(Path(self._directory), name) if self._directory else None
        if path is None:
            self.detach()
            raise LoraError(
                f"there is no LoRA file {name}{loras.SUFFIX} in {self._directory or 'any directory'}"
            )
        return path

    def _load(self, path: Path) -> str:
        tensors, metadata, sha256 = _read(path)
        try:
            state, metadata = to_diffusers(tensors, metadata)
            state = self._pipe.lora_state_dict(state, use_safetensors=True, local_files_only=True)
        except Exception as error:
            raise LoraError(
                f"the LoRA file {path} is in no format that is known: {first_line(error)}"
            ) from error
        self._check(path, state)
        state = {name: tensor.to(self._dtype) for name, tensor in state.items()}
        try:
            self._pipe.load_lora_into_transformer(
                state,
                transformer=self._pipe.transformer,
                adapter_name=_ADAPTER,
                metadata=metadata,
                _pipeline=self._pipe,
            )
            if not any(_ADAPTER in names for names in self._pipe.get_list_adapters().values()):
                raise LoraError(f"the LoRA file {path} has no effect: nothing in it belongs to this model")
        except Exception as error:
            self._pipe.unload_lora_weights()
            if isinstance(error, LoraError) or is_out_of_memory(error) or is_poisoned(error):
                raise
            raise LoraError(f"the LoRA file {path} cannot be loaded: {first_line(error)}") from error
        log.info("the LoRA %s is loaded", path.name)
        return sha256

    def _check(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Refuse what does not fit this transformer, or changes nothing in it: the library would take some of that."""
        modules = dict(self._pipe.transformer.named_modules())
        for name, tensor in sorted(state.items()):
            module_name, part = _parts(name)
            module = modules.get(module_name)
            if not isinstance(module, nn.Linear):
                raise LoraError(f"the LoRA file {path} does not fit this model, which has no {module_name}")
            if part != "lora_A.weight":
                continue
            # Quantised layers keep their weights in other shapes, and say the true widths.
            up = state[f"{_COMPONENT}{module_name}.lora_B.weight"]
            if not (tensor.ndim == up.ndim == 2 and tensor.shape[0] == up.shape[1]) or (
                (tensor.shape[1], up.shape[0]) != (module.in_features, module.out_features)
            ):
                raise LoraError(
                    f"the LoRA file {path} does not fit this model: it changes {module_name} from "
                    f"{tensor.shape[-1]} to {up.shape[0]} numbers, which is {module.in_features} to "
                    f"{module.out_features} here"
                )
        if not any(tensor.any() for name, tensor in state.items() if not name.endswith("lora_A.weight")):
            raise LoraError(f"the LoRA file {path} has no effect: all its numbers are zero")


def to_diffusers(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return a file's tensors under names that diffusers' own conversion takes, and the settings it wrote beside them.

    Raises: ValueError for a kind that cannot be applied as it was trained.
    """
    if any("dora_scale" in name or "magnitude_vector" in name for name in tensors):
        raise ValueError("it is a DoRA")  # diffusers would leave the scales out
    is_fused = any(_FUSED in name for name in tensors)
    if is_fused and any(".lokr_" in name for name in tensors):
        raise ValueError("it is a LoKr of joined attention layers")  # diffusers would join those of the model
    if any(name.startswith(_KOHYA) for name in tensors):
        return dict(tensors), None
    # Names with `.lora.down.` may say everything twice, joined and apart; diffusers takes care of them.
    is_dotted = any(".lora.down." in name for name in tensors)
    state: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        name = _bare(full_name)
        if is_dotted:
            state[_NATIVE + name] = tensor
        elif _FUSED in name:
            rows = tensor.chunk(3) if name.endswith(_UP) else (tensor,) * 3
            state |= {
                _NATIVE + name.replace(_FUSED, part): row for part, row in zip(_SPLIT, rows, strict=True)
            }
        else:
            state[_NATIVE + name.replace(_OUT, _TO_OUT)] = tensor
    if _METADATA not in metadata:
        return state, None
    if is_fused:
        # Its names would mean the joined layers.
        raise ValueError(f"it has joined attention layers and {_METADATA}")
    written: dict[str, Any] = json.loads(metadata[_METADATA])
    return state, {_COMPONENT + key.removeprefix(_COMPONENT): value for key, value in written.items()}


def _bare(name: str) -> str:
    """Return a tensor's name without what stands before the transformer's own modules, and those as diffusers has them."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for original, renamed in _ORIGINAL_NAMES:
        if name.startswith(original):
            name = renamed + name.removeprefix(original)
    return name


def _parts(name: str) -> tuple[str, str]:
    """Return a tensor's module, and what it is of the module's LoRA or LoKr."""
    module_name, _, part = name.removeprefix(_COMPONENT).rpartition(".")
    if part == "weight":
        module_name, _, kind = module_name.rpartition(".")
        part = f"{kind}.weight"
    return module_name, part


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Return a file's tensors, its metadata and its SHA-256. Raises: LoraError."""
    try:
        if path.stat().st_size > MAX_LORA_BYTES:
            raise LoraError(f"the LoRA file {path} is larger than {MAX_LORA_BYTES // 2**30} GiB")
        data = path.read_bytes()
        _, metadata = read_spans(path)
        return safetensors.torch.load(data), metadata, loras.digest(data)
    except OSError as error:
        raise LoraError(f"the LoRA file {path} cannot be read: {error.strerror or error}") from error
    except BadTensorFile as error:
        raise LoraError(f"the LoRA file {path} is damaged, or no safetensors file: it {error}") from error
    except safetensors.SafetensorError as error:
        raise LoraError(f"the LoRA file {path} is damaged: {first_line(error)}") from error
