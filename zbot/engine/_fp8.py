"""Matrix products in 8-bit floating point: how numbers are rounded to it, and layers whose weights are kept in it.

Every row of a weight and of an activation has a scale of its own, so that its largest number is the largest of e4m3;
products are summed in higher precision and come out in the dtype the model runs in. Three bits of mantissa remain of
bfloat16's seven: lossy, and therefore never chosen unasked.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0
LEAST = 1e-12  # what a row of zeros is taken to hold
# Partial sums stay in the tensor cores' own registers, with 14 bits.
FAST_ACCUMULATION = True
CAPABILITY = (8, 9)  # NVIDIA's first with such products: Ada


class Form(Enum):
    """In what form a matrix product reads its input."""

    EXACT = "exact"
    FP8 = "fp8"
    BOTH = "both"  # a LoRA reads the exact one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """An activation [rows, dim] in 8 bits: `values * scales`."""

    values: Tensor
    """e4m3 [rows, dim]."""
    scales: Tensor
    """float32 [rows, 1]."""
    exact: Tensor | None = None
    """The same as it was before, where it is wanted too."""


Activation = Tensor | Rows


def in_form(x: Tensor, form: Form) -> Activation:
    """Return an activation [rows, dim] in the form that a product reads."""
    if form is Form.EXACT:
        return x
    values, scales = quantize(x)
    return Rows(values=values, scales=scales, exact=x if form is Form.BOTH else None)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x [rows, dim] as e4m3 of that shape and scales, float32 [rows, 1]."""
    wide = x.float()
    scales = wide.abs().amax(dim=1, keepdim=True).clamp_(min=LEAST) / LARGEST
    return (wide / scales).to(DTYPE), scales


def multiply(x: Rows, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x weightᵀ [rows, width] in `dtype`, of a weight [width, dim] in e4m3 with scales [width, 1]."""
    if x.values.is_cuda:
        scaled: Any = torch._scaled_mm  # pyright: ignore  torch has no public name for it
        return scaled(
            x.values,
            weight.T,
            scale_a=x.scales,
            scale_b=weight_scales.T,
            out_dtype=dtype,
            use_fast_accum=FAST_ACCUMULATION,
        )
    return functional.linear(x.values.float() * x.scales, weight.float() * weight_scales).to(dtype)


class Fp8Linear(nn.Linear):
    """A bias-free linear layer with weights in 8 bits, which rounds its input to 8 bits too."""

    def __init__(self, values: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        """Take the weight as `quantize` returns it, and the dtype of what comes in and goes out."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = values.shape
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_parameter("bias", None)
        self.register_buffer("scales", scales)
        self.compute_dtype = dtype  # peft makes its adapters in it

    def forward(self, input: Tensor) -> Tensor:
        """Return the product of the input [..., in_features]."""
        values, scales = quantize(input.flatten(0, -2))
        rows = Rows(values=values, scales=scales)
        out = multiply(rows, self.weight, self.get_buffer("scales"), input.dtype)
        return out.view(*input.shape[:-1], self.out_features)


def quantize_blocks(blocks: Iterable[Any], device: torch.device) -> None:
    """Replace the layers of a transformer's blocks, one block at a time, so that never two copies of much are held.

    What one product reads together is laid out together. The blocks end on `device`.
    """
    for block in blocks:
        block.to(device)
        attention, feed_forward = block.attention, block.feed_forward
        _replace(attention, "to_q", "to_k", "to_v")
        _replace(attention.to_out, "0")
        _replace(feed_forward, "w1", "w3")
        _replace(feed_forward, "w2")
        if device.type == "cuda":
            # Or what comes next would be laid into the holes, and they could never be given back.
            torch.cuda.empty_cache()


def _replace(parent: nn.Module, *names: str) -> None:
    linears = [parent.get_submodule(name) for name in names]
    weights = [linear.get_parameter("weight") for linear in linears]
    height = sum(len(weight) for weight in weights)
    joined = torch.empty(height, weights[0].shape[1], dtype=DTYPE, device=weights[0].device)
    start = 0
    for name, weight in zip(names, weights, strict=True):
        values = joined[start : start + len(weight)]
        rounded, scales = quantize(weight.detach())
        values.copy_(rounded)
        parent.set_submodule(name, Fp8Linear(values, scales, weight.dtype))
        start += len(weight)
