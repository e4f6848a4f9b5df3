"""The decoder: one forward pass for every family, as its spec says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.checkpoint import Weights
from engine.models.rope import rope_tables
from engine.models.spec import DecoderSpec
from kernels.activation import act_and_mul
from kernels.attention import AttentionPlan, AttentionShape, attention, store_kv
from kernels.linear import LinearWeight, linear, pack_linear
from kernels.norm import add_rms_norm, rms_norm
from kernels.opset import OpSet
from kernels.rotary import rotary

KVCache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [blocks, block_size, kv_heads, head_dim] each."""


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: Tensor
    qkv: LinearWeight
    qk_norm: Tensor | None
    """[heads + kv_heads, head_dim]."""
    out: LinearWeight
    post_attention_norm: Tensor
    gate_up: LinearWeight
    down: LinearWeight


class Decoder:
    """A model's parameters in the layout of one op set."""

    def __init__(
        self,
        spec: DecoderSpec,
        ops: OpSet,
        weights: Weights,
        num_positions: int,
        on_layer: Callable[[int], None] = lambda layer: None,
    ) -> None:
        """Reads every parameter once; `on_layer` is called before each layer's are read."""
        self.spec = spec
        self.ops = ops
        self.attention_shape = AttentionShape(
            spec.num_heads, spec.num_kv_heads, spec.head_dim, scale=spec.head_dim**-0.5
        )
        self.cos, self.sin = rope_tables(spec.rope, spec.head_dim, num_positions)
        outer = {param.name: weights.read(param) for param in spec.outer_params}
        self.embedding = outer["embedding"]
        self.final_norm = outer["final_norm"]
        self.lm_head = pack_linear(ops, outer.pop("lm_head", self.embedding), None)
        self.layers: list[_Layer] = []
        for i in range(spec.num_layers):
            on_layer(i)
            self.layers.append(self._read_layer(weights, i))

    def _read_layer(self, weights: Weights, i: int) -> _Layer:
        spec = self.spec
        params = {param.name: weights.read(param, i) for param in spec.layer_params}

        def packed(name: str) -> LinearWeight:
            return pack_linear(self.ops, params[name], params.get(f"{name}_bias"))

        qk_norm = None
        if spec.qk_norm:
            q_norm = params["q_norm"].expand(spec.num_heads, -1)
            k_norm = params["k_norm"].expand(spec.num_kv_heads, -1)
            qk_norm = torch.cat((q_norm, k_norm))
        return _Layer(
            input_norm=params["input_norm"],
            qkv=packed("qkv"),
            qk_norm=qk_norm,
            out=packed("out"),
            post_attention_norm=params["post_attention_norm"],
            gate_up=packed("gate_up"),
            down=packed("down"),
        )

    def forward(self, token_ids: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan) -> Tensor:
        """Runs T tokens and writes their keys and values to the cache.

        token_ids, positions: [T] int64, packed as the plan's metadata says. Returns the last hidden states
        before the final norm, [T, hidden_size].
        """
        ops, eps = self.ops, self.spec.norm_eps
        cos, sin = self.cos[positions], self.sin[positions]
        residual = self.embedding[token_ids]
        x = None
        for layer, (k_cache, v_cache) in zip(self.layers, cache, strict=True):
            if x is None:
                x = rms_norm(ops, residual, layer.input_norm, eps)
            else:
                x = add_rms_norm(ops, x, residual, layer.input_norm, eps)
            x = self._attend(layer, x, (cos, sin), (k_cache, v_cache), plan)
            x = add_rms_norm(ops, x, residual, layer.post_attention_norm, eps)
            x = linear(ops, act_and_mul(ops, linear(ops, x, layer.gate_up), "silu"), layer.down)
        assert x is not None, "a decoder without layers"
        return residual.add_(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [R, hidden_size], rows of what `forward` returned. Returns [R, vocab_size] float32."""
        x = rms_norm(self.ops, hidden, self.final_norm, self.spec.norm_eps)
        return linear(self.ops, x, self.lm_head)

    def _attend(
        self,
        layer: _Layer,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        plan: AttentionPlan,
    ) -> Tensor:
        """x: [T, hidden_size], normed. Returns [T, hidden_size]."""
        ops, shape = self.ops, self.attention_shape
        qkv = linear(ops, x, layer.qkv).view(x.shape[0], -1, shape.head_dim)
        num_turned = shape.num_heads + shape.num_kv_heads
        qk, values = qkv[:, :num_turned], qkv[:, num_turned:]
        if layer.qk_norm is not None:
            qk = rms_norm(ops, qk, layer.qk_norm, self.spec.norm_eps)
        qk = rotary(ops, qk, *rope)
        q, keys = qk[:, : shape.num_heads], qk[:, shape.num_heads :]
        store_kv(ops, keys, values, *cache, plan.metadata.slot_mapping)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        attention(ops, q, *cache, plan, out)
        return linear(ops, out.view(x.shape[0], -1), layer.out)
