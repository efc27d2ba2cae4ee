"""Linear layers that read the same input, as one matrix product, with the LoRA that is on them; exact or in 8 bits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zbot.engine import _cublaslt as cublaslt
from zbot.engine import _fp8 as fp8
from zbot.engine._fp8 import Activation, Form, Fp8Linear, Rows

# By name: without a LoRA nothing of peft need be imported.
_PEFT_LORA = "peft.tuners.lora.layer.Linear"


def unsupported_linear(linear: Any) -> str | None:
    """Say why `Product` cannot stand in for this layer, or return None if it can. Adapters are no hindrance."""
    base = getattr(linear, "base_layer", linear)
    if type(base) not in (nn.Linear, Fp8Linear) or getattr(base, "bias", None) is not None:
        return "quantised or replaced layers"
    return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Delta:
    """What one LoRA adds to columns `start` to `end` of a product: `scale * (x downᵀ) upᵀ`."""

    start: int
    end: int
    down: Tensor
    up: Tensor
    scale: float


class Product:
    """One or several bias-free linear layers of the same input as one matrix product."""

    def __init__(self, *linears: Any) -> None:
        """Take the layers over: their weights become views into the joined one, with the same values.

        What adapters are on them now counts; make a new one after a change.
        """
        self._linears = linears
        bases = [getattr(linear, "base_layer", linear) for linear in linears]
        self.weight = _join(bases)
        self._dtype: torch.dtype = getattr(bases[0], "compute_dtype", self.weight.dtype)
        self._scales = torch.cat([base.scales for base in bases]) if isinstance(bases[0], Fp8Linear) else None
        self._deltas: list[_Delta] = []
        self._is_plain = True  # else there are adapters that only their own modules can apply
        start = 0
        for linear in linears:
            end = start + linear.out_features
            deltas = _lora_deltas(linear, start, end, self._dtype)
            if deltas is None:
                self._is_plain = False
            else:
                self._deltas += deltas
            start = end

    @property
    def reads(self) -> Form:
        """Tell in what form the input is wanted."""
        if self._scales is None or not self._is_plain:
            return Form.EXACT
        return Form.BOTH if self._deltas else Form.FP8

    def __call__(self, x: Activation) -> Tensor:
        """Return the layers' results [rows, sum of widths] side by side, of an input in the form that `reads` names."""
        exact: Any = x.exact if isinstance(x, Rows) else x
        if not self._is_plain:
            return torch.cat([linear(exact) for linear in self._linears], dim=-1)
        if isinstance(x, Rows):
            assert self._scales is not None
            out = fp8.multiply(x, self.weight, self._scales, self._dtype)
        else:
            out = cublaslt.linear(x, self.weight)
        # As peft does it: the result, rounded, and then what is added to it.
        for delta in self._deltas:
            out[:, delta.start : delta.end].addmm_(
                functional.linear(exact, delta.down), delta.up.T, alpha=delta.scale
            )
        return out


def _lora_deltas(linear: Any, start: int, end: int, dtype: torch.dtype) -> list[_Delta] | None:
    """Return what the layer's active LoRAs add, or None if it has adapters that are no plain LoRA."""
    if type(linear) in (nn.Linear, Fp8Linear):
        return []
    if f"{type(linear).__module__}.{type(linear).__qualname__}" != _PEFT_LORA or linear.merged:
        return None
    deltas: list[_Delta] = []
    for name in () if linear.disable_adapters else linear.active_adapters:
        if name not in linear.lora_A:
            continue
        down, up = linear.lora_A[name], linear.lora_B[name]
        if name in linear.lora_variant or up.bias is not None:
            return None
        deltas.append(
            _Delta(
                start=start,
                end=end,
                down=down.weight.to(dtype),
                up=up.weight.to(dtype),
                scale=float(linear.scaling[name]),
            )
        )
    return deltas


def _join(linears: list[nn.Linear]) -> Tensor:
    """Return the weights below each other in one tensor, and make the layers' own weights views into it."""
    if len(linears) == 1:
        return linears[0].weight.data
    first = linears[0].weight.data
    storage = first.untyped_storage().data_ptr()
    rows = sum(linear.out_features for linear in linears)
    at = first.storage_offset()
    whole = first.untyped_storage().nbytes() >= (at + rows * first.shape[1]) * first.element_size()
    for linear in linears:
        weight = linear.weight.data
        whole &= weight.untyped_storage().data_ptr() == storage and weight.storage_offset() == at
        at += weight.numel()
    if whole:  # joined before: `reset` looks again after every change of adapters
        return first.as_strided((rows, first.shape[1]), first.stride())
    joined = torch.cat([linear.weight.data for linear in linears])
    start = 0
    for linear in linears:
        linear.weight.data = joined[start : start + linear.out_features]
        start += linear.out_features
    return joined
