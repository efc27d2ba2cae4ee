# pyright: basic, reportIndexIssue=false, reportMissingImports=false, reportArgumentType=false
"""The steps between matrix products as Triton kernels: each reads and writes its tensors once.

They hold no shape but the model's own widths as compile-time constants, so a new picture size or caption length
compiles nothing, and no autotuning chooses between variants, so the bytes of a picture do not depend on timing noise.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from zbot.engine import _fp8 as fp8
from zbot.engine._fp8 import Activation, Form, Rows
from zbot.engine._kernels import attention
from zbot.engine._triton_kernels import (
    add_rms_norm_kernel,
    add_with_bias_kernel,
    affine_silu_kernel,
    attention_kernel,
    channel_moments_kernel,
    double_kernel,
    gated_silu_kernel,
    group_affine_kernel,
    in_form_kernel,
    norm_and_rotate_halves_kernel,
    norm_and_rotate_kernel,
    rms_norm_kernel,
    softmax_kernel,
)

# Sizes of a program's share. Each was the fastest of a few on an H200; none is chosen at run time.
_ROW_WARPS = 8
_WIDE_ROW_WARPS = 16
_SILU_BLOCK = 2048
_PIXEL_BLOCK = 4096
_MOMENT_ELEMENTS = 4096
_SOFTMAX_BLOCK = 4096
# With 64 queries a program, two programs on each of a Hopper card's 132 multiprocessors take up to 1,088 rows of 30 heads
# in two rounds. cuDNN takes 128 queries and, from 1,025 rows on, a third round for 6 of its 270 programs. These rows are
# 512x512 with a caption of up to 64 tokens; at all others that were measured cuDNN is faster.
_ATTENTION_ROWS = range(1_025, 1_089)
_ATTENTION_HEAD_DIM = 128
_ATTENTION_BLOCK = 64
_ATTENTION_STAGES = 3
_MOMENT_PROGRAMS = 1056  # eight for each of the H200's 132 multiprocessors


class TritonKernels:
    """The operations of `Kernels` on an NVIDIA or AMD card; pictures are held channels-last."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        """Choose how kernels are launched on this card."""
        capability = (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)
        self._is_hopper = capability[0] == 9
        # From Hopper on, a kernel can be launched while the one before it still runs (programmatic dependent launch).
        self._early: dict[str, Any] = {"EARLY": False}
        if capability >= (9, 0):
            self._early = {"EARLY": True, "launch_pdl": True}

    def rms_norm(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, eps: float, form: Form = Form.EXACT
    ) -> Activation:
        rows, dim = x.shape
        made = _Made(x, dim, form)
        rms_norm_kernel[(rows,)](
            x,
            weight,
            weight if scale is None else scale,
            *made.pointers,
            eps,
            DIM=dim,
            BLOCK=triton.next_power_of_2(dim),
            HAS_SCALE=scale is not None,
            EXACT=made.exact is not None,
            FP8=made.values is not None,
            num_warps=_ROW_WARPS,
        )
        return made.activation

    def add_rms_norm_(self, x: Tensor, y: Tensor, weight: Tensor, gate: Tensor | None, eps: float) -> None:
        self._add(x, y, weight, gate, None, None, eps, Form.EXACT)

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
        made = self._add(x, y, weight, gate, next_weight, next_scale, eps, form)
        return made.activation

    def _add(
        self,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        gate: Tensor | None,
        next_weight: Tensor | None,
        next_scale: Tensor | None,
        eps: float,
        form: Form,
    ) -> "_Made":
        rows, dim = x.shape
        made = _Made(x, dim, form, is_wanted=next_weight is not None)
        add_rms_norm_kernel[(rows,)](
            x,
            y,
            x if weight is None else weight,
            x if gate is None else gate,
            x if next_weight is None else next_weight,
            x if next_scale is None else next_scale,
            *made.pointers,
            eps,
            DIM=dim,
            BLOCK=triton.next_power_of_2(dim),
            HAS_NORM=weight is not None,
            HAS_GATE=gate is not None,
            HAS_NEXT=next_weight is not None,
            HAS_SCALE=next_scale is not None,
            EXACT=made.exact is not None,
            FP8=made.values is not None,
            num_warps=_ROW_WARPS,
            **self._early,
        )
        return made

    def norm_and_rotate_(
        self, qkv: Tensor, heads: int, weights: tuple[Tensor, Tensor], eps: float, cos: Tensor, sin: Tensor
    ) -> None:
        rows, width = qkv.shape
        norm_and_rotate_kernel[(rows, 2)](
            qkv,
            weights[0],
            weights[1],
            cos,
            sin,
            eps,
            HEADS=heads,
            HEADS_BLOCK=triton.next_power_of_2(heads),
            HEAD_DIM=width // (3 * heads),
            num_warps=_ROW_WARPS,
            **self._early,
        )

    def norm_and_rotate_halves_(
        self,
        qkv: Tensor,
        heads: tuple[int, int],
        weights: tuple[Tensor, Tensor],
        eps: float,
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        rows, width = qkv.shape
        half = width // (2 * (heads[0] + 2 * heads[1]))
        norm_and_rotate_halves_kernel[(rows, heads[0] + heads[1])](
            qkv,
            weights[0],
            weights[1],
            cos,
            sin,
            eps,
            HEADS=heads[0],
            KV_HEADS=heads[1],
            HALF=half,
            BLOCK=triton.next_power_of_2(half),
            num_warps=1,
        )

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        rows, width = qkv.shape
        dim = width // 3
        fits = self._is_hopper and qkv.dtype is torch.bfloat16 and dim == heads * _ATTENTION_HEAD_DIM
        if not fits or rows not in _ATTENTION_ROWS:
            return attention(qkv, heads)
        out = torch.empty(rows, dim, device=qkv.device, dtype=qkv.dtype)
        block = [_ATTENTION_BLOCK, _ATTENTION_HEAD_DIM]
        attention_kernel[(triton.cdiv(rows, _ATTENTION_BLOCK), heads)](
            TensorDescriptor(qkv, [rows, width], [width, 1], block),
            out,
            rows,
            _ATTENTION_HEAD_DIM**-0.5,
            HEADS=heads,
            HEAD_DIM=_ATTENTION_HEAD_DIM,
            BLOCK=_ATTENTION_BLOCK,
            num_warps=4,
            num_stages=_ATTENTION_STAGES,
            **self._early,
        )
        return out

    def gated_silu(self, x: Tensor, form: Form = Form.EXACT) -> Activation:
        rows, width = x.shape
        hidden = width // 2
        made = _Made(x, hidden, form)
        block = _SILU_BLOCK if made.values is None else triton.next_power_of_2(hidden)
        gated_silu_kernel[(rows, triton.cdiv(hidden, block))](
            x,
            *made.pointers,
            HIDDEN=hidden,
            BLOCK=block,
            EXACT=made.exact is not None,
            FP8=made.values is not None,
            num_warps=_ROW_WARPS if made.values is None else _WIDE_ROW_WARPS,
            **self._early,
        )
        return made.activation

    def in_form(self, x: Tensor, form: Form) -> Activation:
        if form is Form.EXACT:
            return x
        rows, dim = x.shape
        made = _Made(x, dim, Form.FP8)
        in_form_kernel[(rows,)](
            x, *made.pointers[1:], DIM=dim, BLOCK=triton.next_power_of_2(dim), num_warps=_ROW_WARPS
        )
        return Rows(values=made.values, scales=made.scales, exact=x if form is Form.BOTH else None)

    def group_norm_silu(
        self, x: Tensor, norm: torch.nn.GroupNorm, *, silu: bool = True, conv_bias: Tensor | None = None
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        _, channels, height, width = x.shape
        pixels = height * width
        block = triton.next_power_of_2(channels)
        rows = max(1, _MOMENT_ELEMENTS // block)
        per_program = triton.cdiv(triton.cdiv(pixels, _MOMENT_PROGRAMS), rows) * rows
        programs = triton.cdiv(pixels, per_program)
        moments = torch.empty(programs, 2, channels, device=x.device, dtype=torch.float32)
        channel_moments_kernel[(programs,)](
            x, moments, pixels, per_program, CHANNELS=channels, BLOCK=block, ROWS=rows, num_warps=8
        )
        affine = torch.empty(2, channels, device=x.device, dtype=torch.float32)
        per_group = channels // norm.num_groups
        group_affine_kernel[(norm.num_groups,)](
            moments,
            norm.weight if conv_bias is None else conv_bias,
            norm.weight,
            norm.bias,
            affine,
            pixels,
            per_program,
            programs,
            norm.eps,
            CHANNELS=channels,
            PER_GROUP=per_group,
            PER_GROUP_BLOCK=triton.next_power_of_2(per_group),
            ROWS=64,
            HAS_CONV_BIAS=conv_bias is not None,
            num_warps=4,
        )
        out = torch.empty_like(x)
        affine_silu_kernel[(triton.cdiv(x.numel(), _PIXEL_BLOCK),)](
            x, affine, out, x.numel(), CHANNELS=channels, BLOCK=_PIXEL_BLOCK, SILU=silu, num_warps=8
        )
        return out

    def add_with_bias(self, x: Tensor, y: Tensor, y_bias: Tensor, x_bias: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y = y.contiguous(memory_format=torch.channels_last)
        add_with_bias_kernel[(triton.cdiv(y.numel(), _PIXEL_BLOCK),)](
            x,
            y_bias if x_bias is None else x_bias,
            y,
            y_bias,
            y.numel(),
            CHANNELS=y.shape[1],
            BLOCK=_PIXEL_BLOCK,
            HAS_X_BIAS=x_bias is not None,
            num_warps=8,
        )
        return y

    def double(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        _, channels, height, width = x.shape
        block = triton.next_power_of_2(channels)
        rows = max(1, _PIXEL_BLOCK // block)
        out = torch.empty(
            (1, channels, 2 * height, 2 * width),
            device=x.device,
            dtype=x.dtype,
            memory_format=torch.channels_last,
        )
        double_kernel[(triton.cdiv(height * width, rows),)](
            x, out, height * width, width, CHANNELS=channels, BLOCK=block, ROWS=rows, num_warps=8
        )
        return out

    def softmax(self, scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        rows, length = scores.shape
        out = torch.empty(rows, length, device=scores.device, dtype=dtype)
        softmax_kernel[(rows,)](scores, out, scale, length, BLOCK=_SOFTMAX_BLOCK, num_warps=8)
        return out


class _Made:
    """What a kernel makes for the next product, in the form that this one reads."""

    def __init__(self, x: Tensor, width: int, form: Form, *, is_wanted: bool = True) -> None:
        """Make room for [rows of x, width]."""
        rows, is_exact = x.shape[0], is_wanted and form is not Form.FP8
        self.exact = torch.empty(rows, width, device=x.device, dtype=x.dtype) if is_exact else None
        self.values = self.scales = None
        if is_wanted and form is not Form.EXACT:
            self.values = torch.empty(rows, width, device=x.device, dtype=fp8.DTYPE)
            self.scales = torch.empty(rows, 1, device=x.device, dtype=torch.float32)
        # Nothing is written where nothing is wanted, but a kernel takes no absent tensors.
        self.pointers = tuple(x if one is None else one for one in (self.exact, self.values, self.scales))

    @property
    def activation(self) -> Activation:
        if self.values is None:
            assert self.exact is not None
            return self.exact
        return Rows(values=self.values, scales=self.scales, exact=self.exact)
