"""The elementwise steps between matrix products, in plain torch: the reference of what the Triton kernels compute."""

import logging
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from zbot.engine import _fp8 as fp8
from zbot.engine._fp8 import Activation, Form

log = logging.getLogger(__name__)


class Kernels(Protocol):
    """The operations of a drawing that are not one product of two matrices, which cuBLAS does.

    Rows are tokens. Every operation rounds to the tensor's dtype where diffusers' modules do, so that only the order
    of summation differs from the stock pipeline. What the next product reads comes in the `form` which that product
    wants. One implementation is chosen for a whole process: mixing them would change the bytes of a picture.
    """

    name: str

    def rms_norm(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, eps: float, form: Form = Form.EXACT
    ) -> Activation:
        """Return `rms(x) * weight * scale` of x [rows, dim]; scale [dim] may be absent."""
        ...

    def add_rms_norm_(self, x: Tensor, y: Tensor, weight: Tensor, gate: Tensor | None, eps: float) -> None:
        """Add `gate * rms(y) * weight` to x [rows, dim] in place; gate [dim] may be absent."""
        ...

    def add_then_rms_norm_(
        self,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        gate: Tensor | None,
        next_weight: Tensor,
        next_scale: Tensor | None,
        eps: float,
        form: Form = Form.EXACT,
    ) -> Activation:
        """Do `add_rms_norm_`, then return `rms_norm` of the new x with the next norm's weight and scale.

        Without a weight, y is added as it is.
        """
        ...

    def norm_and_rotate_(
        self, qkv: Tensor, heads: int, weights: tuple[Tensor, Tensor], eps: float, cos: Tensor, sin: Tensor
    ) -> None:
        """Normalise and rotate the queries and keys inside qkv [rows, 3 * heads * head_dim] in place.

        `weights` are those of the query and key norm [head_dim]; cos and sin are float32 [rows, head_dim / 2], one
        per neighbouring pair of numbers.
        """
        ...

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        """Return the attention [rows, dim] of queries, keys and values that lie side by side [rows, 3 * dim]."""
        ...

    def norm_and_rotate_halves_(
        self,
        qkv: Tensor,
        heads: tuple[int, int],
        weights: tuple[Tensor, Tensor],
        eps: float,
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        """Do the same as the text encoder has it: qkv [rows, (heads + 2 * kv_heads) * head_dim], pairs a half apart.

        `heads` are the numbers of query heads and of key heads; cos and sin are [rows, head_dim] in qkv's dtype.
        """
        ...

    def gated_silu(self, x: Tensor, form: Form = Form.EXACT) -> Activation:
        """Return `silu(left half) * right half` of x [rows, 2 * hidden]."""
        ...

    def in_form(self, x: Tensor, form: Form) -> Activation:
        """Return x [rows, dim] itself, or rounded."""
        ...

    def group_norm_silu(
        self, x: Tensor, norm: torch.nn.GroupNorm, *, silu: bool = True, conv_bias: Tensor | None = None
    ) -> Tensor:
        """Return `silu(group_norm(x + conv_bias))` of x [1, channels, height, width]; silu and bias are optional."""
        ...

    def add_with_bias(self, x: Tensor, y: Tensor, y_bias: Tensor, x_bias: Tensor | None = None) -> Tensor:
        """Return `(x + x_bias) + (y + y_bias)` of pictures and biases [channels]; may reuse y's memory."""
        ...

    def double(self, x: Tensor) -> Tensor:
        """Return x [1, channels, height, width] with every pixel twice in both directions."""
        ...

    def softmax(self, scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        """Return the softmax of each row of `scores * scale`, float32 [rows, length], as `dtype`."""
        ...


class TorchKernels:
    """The operations in plain torch, for every device that Triton does not know."""

    name = "torch"

    def rms_norm(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, eps: float, form: Form = Form.EXACT
    ) -> Activation:
        return fp8.in_form(_rms_norm(x, weight, scale, eps), form)

    def add_rms_norm_(self, x: Tensor, y: Tensor, weight: Tensor, gate: Tensor | None, eps: float) -> None:
        x += _rms_norm(y, weight, gate, eps)

    def add_then_rms_norm_(
        self,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        gate: Tensor | None,
        next_weight: Tensor,
        next_scale: Tensor | None,
        eps: float,
        form: Form = Form.EXACT,
    ) -> Activation:
        if weight is None:
            x += y
        else:
            self.add_rms_norm_(x, y, weight, gate, eps)
        return self.rms_norm(x, next_weight, next_scale, eps, form)

    def norm_and_rotate_(
        self, qkv: Tensor, heads: int, weights: tuple[Tensor, Tensor], eps: float, cos: Tensor, sin: Tensor
    ) -> None:
        parts = qkv.view(qkv.shape[0], 3, heads, -1)
        c, s = cos[:, None], sin[:, None]
        for index, weight in enumerate(weights):
            part = parts[:, index]
            pairs = _rms_norm(part, weight, None, eps).float().view(*part.shape[:-1], -1, 2)
            left, right = pairs[..., 0], pairs[..., 1]
            part.copy_(torch.stack((left * c - right * s, left * s + right * c), dim=-1).flatten(-2))

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        return attention(qkv, heads)

    def norm_and_rotate_halves_(
        self,
        qkv: Tensor,
        heads: tuple[int, int],
        weights: tuple[Tensor, Tensor],
        eps: float,
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        parts = qkv.view(qkv.shape[0], heads[0] + 2 * heads[1], -1)
        ends = heads[0], heads[0] + heads[1]
        for part, weight in zip((parts[:, : ends[0]], parts[:, ends[0] : ends[1]]), weights, strict=True):
            normed = _rms_norm(part, weight, None, eps)
            left, right = normed.chunk(2, dim=-1)
            part.copy_(normed * cos[:, None] + torch.cat((-right, left), dim=-1) * sin[:, None])

    def gated_silu(self, x: Tensor, form: Form = Form.EXACT) -> Activation:
        left, right = x.chunk(2, dim=-1)
        return fp8.in_form(functional.silu(left) * right, form)

    def in_form(self, x: Tensor, form: Form) -> Activation:
        return fp8.in_form(x, form)

    def group_norm_silu(
        self, x: Tensor, norm: torch.nn.GroupNorm, *, silu: bool = True, conv_bias: Tensor | None = None
    ) -> Tensor:
        if conv_bias is not None:
            x = x + conv_bias[:, None, None]
        x = functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return functional.silu(x) if silu else x

    def add_with_bias(self, x: Tensor, y: Tensor, y_bias: Tensor, x_bias: Tensor | None = None) -> Tensor:
        if x_bias is not None:
            x = x + x_bias[:, None, None]
        return x + (y + y_bias[:, None, None])

    def double(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")

    def softmax(self, scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        return torch.softmax(scores * scale, dim=-1).to(dtype)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Do `Kernels.attention` by torch's own way, cuDNN's kernel where `sdpa_kernel` prefers it."""
    query, key, value = qkv.view(1, qkv.shape[0], 3, heads, -1).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(qkv.shape[0], -1)


def _rms_norm(x: Tensor, weight: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    normed = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    normed = normed.to(weight.dtype) * weight
    return normed if scale is None else normed * scale


def kernels_for(device: torch.device) -> Kernels:
    """Return the Triton kernels where they build and run on `device`, else the plain ones.

    Triton needs a C compiler on the machine the first time; without one the plain ones serve, slower, and the log
    says so.
    """
    if device.type != "cuda":
        return TorchKernels()
    try:
        from zbot.engine._triton import TritonKernels

        kernels = TritonKernels(device)
        probe = torch.ones(2, 64, device=device, dtype=torch.bfloat16)
        kernels.rms_norm(probe, probe[0], None, 1e-5)
        torch.cuda.synchronize(device)
    # A missing compiler, an unknown chip, a broken install: none of them may stop the drawing.
    except Exception as error:
        log.warning("Triton kernels are not available (%s); drawing is slower without them", error)
        return TorchKernels()
    return kernels
