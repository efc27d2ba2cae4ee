"""Turns a prompt into what the transformer reads, running no more of the text encoder than is needed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zbot.engine._fp8 import Activation
from zbot.engine._kernels import Kernels
from zbot.engine._products import Product

MAX_TOKENS = 512
# Prompts are run in lengths of this multiple, so that the libraries meet 16 shapes and not 512. The encoder is causal:
# what stands after the prompt changes nothing before it.
LENGTH_MULTIPLE = 32


class Encoder:
    """A pipeline's `encode_prompt` for one prompt."""

    def __init__(self, pipe: Any, kernels: Kernels) -> None:
        """Join the weights of the encoder's layers in place, if it is the Qwen3 that the model ships with."""
        self._pipe = pipe
        self._kernels = kernels
        self._layers: list[_Layer] = []
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        if _is_plain(pipe.text_encoder):
            # hidden_states[-2] is read: nobody needs the last layer's result, nor the norm after it.
            self._layers = [_Layer(layer) for layer in pipe.text_encoder.layers[:-1]]

    def encode(self, prompt: str) -> Tensor:
        """Return [tokens, width] on the encoder's device; what is over 512 tokens is cut from the end."""
        if not self._layers:
            return self._pipe.encode_prompt([prompt], do_classifier_free_guidance=False)[0][0]
        ids = self._token_ids(prompt)
        padded = ids + [0] * (-len(ids) % LENGTH_MULTIPLE)
        recorded = self._graphs.get(len(padded))
        if recorded is None:
            return self._hidden(torch.tensor(padded, device=self._pipe.text_encoder.device))[: len(ids)]
        graph, static_ids, hidden = recorded
        static_ids.copy_(torch.tensor(padded))
        graph.replay()
        return hidden[: len(ids)].clone()

    @torch.inference_mode()
    def record(self) -> Iterator[int]:
        """Record the launches of every prompt length on a card, yielding each: replayed, they take half the time.

        A short prompt is bound by the host's 450 launches, not by the card. Replaying gives the same numbers.
        """
        device = self._pipe.text_encoder.device
        if not self._layers or device.type != "cuda":
            return
        pool = None
        # The longest first: the shorter ones then live in its memory.
        for length in range(MAX_TOKENS, 0, -LENGTH_MULTIPLE):
            if length not in self._graphs:
                static_ids = torch.zeros(length, dtype=torch.long, device=device)
                self._hidden(static_ids)
                torch.cuda.synchronize(device)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    hidden = self._hidden(static_ids)
                pool = graph.pool()
                self._graphs[length] = (graph, static_ids, hidden)
                yield length

    def _token_ids(self, prompt: str) -> list[int]:
        tokenizer = self._pipe.tokenizer
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        return list(tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids)

    def _hidden(self, ids: Tensor) -> Tensor:
        encoder, kernels = self._pipe.text_encoder, self._kernels
        x = encoder.embed_tokens(ids)
        cos, sin = encoder.rotary_emb(x, torch.arange(len(ids), device=ids.device)[None])
        h = kernels.rms_norm(x, self._layers[0].norms[0], None, self._layers[0].eps)
        for index, layer in enumerate(self._layers):
            mixed = layer.attend(kernels, h, cos[0], sin[0])
            h = kernels.add_then_rms_norm_(x, mixed, None, None, layer.norms[1], None, layer.eps)
            fed = layer.feed_forward(kernels, h)
            if index + 1 < len(self._layers):
                following = self._layers[index + 1]
                h = kernels.add_then_rms_norm_(x, fed, None, None, following.norms[0], None, following.eps)
            else:
                x += fed
        return x


class _Layer:
    """One decoder layer of the text encoder, with joined weights."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._layer = layer
        self._qkv = Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self._halves = Product(mlp.gate_proj, mlp.up_proj)
        self._heads = (
            attention.q_proj.out_features // attention.head_dim,
            attention.k_proj.out_features // attention.head_dim,
        )
        self._qk_weights = (attention.q_norm.weight, attention.k_norm.weight)
        self._qk_eps: float = attention.q_norm.variance_epsilon
        self.eps: float = layer.input_layernorm.variance_epsilon
        self.norms: tuple[Tensor, Tensor] = (
            layer.input_layernorm.weight,
            layer.post_attention_layernorm.weight,
        )

    def attend(self, kernels: Kernels, h: Activation, cos: Tensor, sin: Tensor) -> Tensor:
        heads, kv_heads = self._heads
        qkv = self._qkv(h)
        kernels.norm_and_rotate_halves_(qkv, self._heads, self._qk_weights, self._qk_eps, cos, sin)
        states = qkv.view(1, len(qkv), heads + 2 * kv_heads, -1).transpose(1, 2)
        query, key, value = (
            states[:, :heads],
            states[:, heads : heads + kv_heads],
            states[:, heads + kv_heads :],
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self._layer.self_attn.o_proj(mixed.transpose(1, 2).reshape(len(qkv), -1))

    def feed_forward(self, kernels: Kernels, h: Activation) -> Tensor:
        return self._layer.mlp.down_proj(kernels.gated_silu(self._halves(h)))


def _is_plain(encoder: Any) -> bool:
    """Tell whether the encoder is an unquantised Qwen3 that stands whole on one device."""
    if type(encoder).__name__ != "Qwen3Model" or encoder.has_sliding_layers or len(encoder.layers) < 2:
        return False
    if hasattr(encoder, "_hf_hook") or encoder.config.hidden_act != "silu":
        return False
    if any(hasattr(module, "_diffusers_hook") for module in encoder.modules()):  # streamed layer by layer
        return False
    linears = [
        linear
        for layer in encoder.layers
        for part in (layer.self_attn, layer.mlp)
        for linear in part.children()
        if "Norm" not in type(linear).__name__ and "SiLU" not in type(linear).__name__
    ]
    return all(type(linear) is nn.Linear and getattr(linear, "bias", None) is None for linear in linears)
