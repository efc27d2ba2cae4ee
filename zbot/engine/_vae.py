"""The VAE decoder's stock modules run channels-last, with the normalisations fused and the attention in pieces."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zbot.engine._kernels import Kernels

# One piece of the middle block's attention holds this many float32 scores: 32 MiB, so that they stay in the L2 cache.
ATTENTION_SCORES = 8 * 2**20


def unsupported_vae(vae: Any) -> str | None:
    """Say why `decode` cannot stand in for `vae.decode`, or return None if it can."""
    decoder = vae.decoder
    convolutions = [decoder.conv_in, decoder.conv_out]
    blocks = list(decoder.mid_block.resnets)
    for up in decoder.up_blocks:
        blocks += up.resnets
        for upsampler in up.upsamplers or ():
            if upsampler.norm is not None or upsampler.use_conv_transpose or not upsampler.interpolate:
                return "an upsampler that is not nearest-neighbour and convolution"
            convolutions.append(upsampler.conv)
    for block in blocks:
        plain = (
            block.time_embedding_norm in ("default", "group")
            and block.time_emb_proj is None
            and block.upsample is None
            and block.downsample is None
            and isinstance(block.nonlinearity, nn.SiLU)
            and block.output_scale_factor == 1.0
        )
        if not plain:
            return "a residual block of another kind"
        convolutions += [block.conv1, block.conv2]
    for attention in decoder.mid_block.attentions:
        if attention is not None and (attention.heads != 1 or attention.rescale_output_factor != 1.0):
            return "an attention of another kind"
    if any(type(convolution) is not nn.Conv2d for convolution in convolutions):
        return "convolutions that were replaced"
    if not isinstance(decoder.conv_norm_out, nn.GroupNorm) or not isinstance(decoder.conv_act, nn.SiLU):
        return "an output layer of another kind"
    return None


def decode(vae: Any, kernels: Kernels, latents: Tensor) -> Tensor:
    """Return the picture [1, 3, height, width], about -1 to 1, of scaled latents [1, channels, height/8, width/8].

    The arithmetic is that of `vae.decode`. Needs a VAE that `unsupported_vae` has nothing against.
    """
    decoder = vae.decoder
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    x = decoder.conv_in(latents)
    middle = decoder.mid_block
    x = _residual(middle.resnets[0], kernels, x)
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            x = _attend(attention, kernels, x)
        x = _residual(block, kernels, x)
    for up in decoder.up_blocks:
        for block in up.resnets:
            x = _residual(block, kernels, x)
        for upsampler in up.upsamplers or ():
            x = upsampler.conv(kernels.double(x))
    return decoder.conv_out(kernels.group_norm_silu(x, decoder.conv_norm_out))


def _residual(block: Any, kernels: Kernels, x: Tensor) -> Tensor:
    # The biases of the convolutions are added by the kernel that reads their result anyway.
    hidden = kernels.group_norm_silu(x, block.norm1)
    hidden = _convolve(block.conv1, hidden)
    hidden = kernels.group_norm_silu(hidden, block.norm2, conv_bias=block.conv1.bias)
    hidden = _convolve(block.conv2, hidden)
    if block.conv_shortcut is None:
        return kernels.add_with_bias(x, hidden, block.conv2.bias)
    x = _convolve(block.conv_shortcut, x)
    return kernels.add_with_bias(x, hidden, block.conv2.bias, block.conv_shortcut.bias)


def _convolve(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    return functional.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding)


def _attend(attention: Any, kernels: Kernels, x: Tensor) -> Tensor:
    """Add single-head attention over all pixels of x; flash kernels know no head of 512 numbers."""
    normed = kernels.group_norm_silu(x, attention.group_norm, silu=False)
    tokens = normed.flatten(2).transpose(1, 2)
    query, key, value = attention.to_q(tokens), attention.to_k(tokens), attention.to_v(tokens)
    if x.is_cuda and x.dtype == torch.bfloat16:
        mixed = _attention_in_pieces(kernels, query[0], key[0], value[0])[None]
    else:
        mixed = functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
    mixed = attention.to_out[0](mixed)
    return x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])


def _attention_in_pieces(kernels: Kernels, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query keyᵀ / √dim) value of [tokens, dim], with float32 scores, some rows at a time."""
    tokens, dim = query.shape
    out = torch.empty_like(query)
    rows = max(1, ATTENTION_SCORES // tokens)
    for start in range(0, tokens, rows):
        scores = torch.mm(query[start : start + rows], key.T, out_dtype=torch.float32)
        torch.mm(kernels.softmax(scores, dim**-0.5, value.dtype), value, out=out[start : start + rows])
    return out
