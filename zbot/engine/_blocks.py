"""A transformer block of Z-Image as four matrix products, one attention and four fused steps between them."""

from typing import Any

import torch
from torch import Tensor

from zbot.engine._fp8 import Activation
from zbot.engine._kernels import Kernels
from zbot.engine._products import Product, unsupported_linear


def unsupported_block(block: Any) -> str | None:
    """Say why `Block` cannot stand in for this block, or return None if it can. Adapters are no hindrance."""
    attention, feed_forward = block.attention, block.feed_forward
    linears = [attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]]
    linears += [feed_forward.w1, feed_forward.w2, feed_forward.w3]
    for linear in linears:
        if reason := unsupported_linear(linear):
            return reason
    if attention.norm_q is None or attention.norm_k is None or attention.norm_q.eps != attention.norm_k.eps:
        return "queries and keys that are not normalised alike"
    if (
        len({block.attention_norm1.eps, block.attention_norm2.eps, block.ffn_norm1.eps, block.ffn_norm2.eps})
        > 1
    ):
        return "normalisations that differ"
    return None


class Block:
    """One block's weights, joined where one matrix product can do the work of several."""

    def __init__(self, block: Any) -> None:
        """Take a ZImageTransformerBlock; its weights become views into the joined ones, with the same values."""
        attention, feed_forward = block.attention, block.feed_forward
        self._block = block
        self.qkv = Product(attention.to_q, attention.to_k, attention.to_v)
        self._out = Product(attention.to_out[0])
        self.halves = Product(feed_forward.w1, feed_forward.w3)
        self._down = Product(feed_forward.w2)
        self.heads: int = attention.heads
        self.qk_weights: tuple[Tensor, Tensor] = (attention.norm_q.weight, attention.norm_k.weight)
        self.qk_eps: float = attention.norm_q.eps
        self.eps: float = block.attention_norm1.eps
        self.norms: tuple[Tensor, Tensor, Tensor, Tensor] = (
            block.attention_norm1.weight,
            block.attention_norm2.weight,
            block.ffn_norm1.weight,
            block.ffn_norm2.weight,
        )

    def modulation(self, embedded_timestep: Tensor) -> Tensor:
        """Return [4, dim]: attention scale and gate, feed-forward scale and gate, of one timestep [1, 256]."""
        scale_msa, gate_msa, scale_mlp, gate_mlp = self._block.adaLN_modulation(embedded_timestep).chunk(
            4, dim=1
        )
        return torch.cat([1.0 + scale_msa, gate_msa.tanh(), 1.0 + scale_mlp, gate_mlp.tanh()])

    def attend(
        self, kernels: Kernels, h: Activation, rope: tuple[Tensor, Tensor], rows: int | None = None
    ) -> Tensor:
        """Return the attention's output [tokens, dim] for its normalised input; of the first `rows` only if given."""
        qkv = self.qkv(h)
        kernels.norm_and_rotate_(qkv, self.heads, self.qk_weights, self.qk_eps, *rope)
        mixed = kernels.attention(qkv, self.heads)[:rows]
        return self._out(kernels.in_form(mixed, self._out.reads))

    def feed_forward(self, kernels: Kernels, h: Activation) -> Tensor:
        """Return the gated feed-forward's output [tokens, dim] for its normalised input."""
        return self._down(kernels.gated_silu(self.halves(h), self._down.reads))


def run_blocks(
    blocks: list[Block],
    kernels: Kernels,
    x: Tensor,
    rope: tuple[Tensor, Tensor],
    modulation: Tensor | None,
    rows: int | None = None,
) -> Tensor:
    """Run x [tokens, dim] through the blocks, in place, and return it; its first `rows` only, if given.

    What the last block would compute for the others beside their keys and values is not computed.

    modulation is [blocks, 4, dim] as `Block.modulation` gives it, or None for blocks without. Each residual addition
    is done together with the normalisation that follows it, across the border between blocks too.
    """
    if not blocks:
        return x
    none = (None, None, None, None)
    vectors = (
        [none] * len(blocks) if modulation is None else [tuple(one.unbind()) for one in modulation.unbind()]
    )
    h = kernels.rms_norm(x, blocks[0].norms[0], vectors[0][0], blocks[0].eps, blocks[0].qkv.reads)
    for index, block in enumerate(blocks):
        _, gate_msa, scale_mlp, gate_mlp = vectors[index]
        wanted = rows if index + 1 == len(blocks) else None
        mixed, x = block.attend(kernels, h, rope, wanted), x[:wanted]
        h = kernels.add_then_rms_norm_(
            x, mixed, block.norms[1], gate_msa, block.norms[2], scale_mlp, block.eps, block.halves.reads
        )
        fed = block.feed_forward(kernels, h)
        if index + 1 < len(blocks):
            following = blocks[index + 1]
            h = kernels.add_then_rms_norm_(
                x,
                fed,
                block.norms[3],
                gate_mlp,
                following.norms[0],
                vectors[index + 1][0],
                block.eps,
                following.qkv.reads,
            )
        else:
            kernels.add_rms_norm_(x, fed, block.norms[3], gate_mlp, block.eps)
    return x
