"""The decoder: one forward pass for every family, as its spec says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.model import KVCache
from engine.models.rope import rope_tables
from engine.models.spec import DecoderSpec, LayerSpec, Param, RopeSpec
from engine.models.weights import Weights
from kernels.activation import act_and_mul, activate
from kernels.attention import AttentionPlan, AttentionShape, attention, store_kv
from kernels.linear import LinearWeight, linear, pack_linear
from kernels.moe import ExpertWeights, moe, pack_experts, route
from kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.opset import OpSet
from kernels.rotary import rotary


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    """Float32, of the normed dimensions: [heads, head_dim] norms each head."""
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class _Mlp:
    """`inner` is gate and up of a gated MLP; a mixture of experts has `router` and `experts` instead."""

    gated: bool
    inner: LinearWeight | None
    down: LinearWeight | None
    router: LinearWeight | None
    experts: ExpertWeights | None


@dataclass(frozen=True, slots=True)
class _Layer:
    spec: LayerSpec
    plan: int
    """Index of its attention shape."""
    qkv: LinearWeight
    out: LinearWeight
    mlp: _Mlp
    attention_norm: _Norm | None
    attention_post_norm: _Norm | None
    mlp_norm: _Norm | None
    mlp_post_norm: _Norm | None
    qk_norms: tuple[_Norm, ...]
    """One for all heads of queries and keys, or one for all queries and one for all keys."""


class Decoder:
    """A model's parameters in the layout of one op set. It is an `engine.models.model.Model`."""

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
        self.dtype = weights.dtype
        self.vocab_size = spec.vocab_size
        self.hidden_size = spec.hidden_size
        self.num_layers = spec.num_layers
        self.attention_shapes: tuple[AttentionShape, ...] = tuple(
            dict.fromkeys(layer.attention for layer in spec.layers)
        )
        ropes = dict.fromkeys(layer.rope for layer in spec.layers if layer.rope is not None)
        self._rope_tables = {rope: rope_tables(rope, num_positions) for rope in ropes}
        outer = _Parameters(ops, weights, spec.outer_params, 0)
        self._embedding = outer.read("embedding")
        self._positions = outer.read("positions") if outer.has("positions") else None
        self._embedding_norm = outer.norm("embedding_norm")
        self._final_norm = outer.norm("final_norm")
        lm_head = self._embedding if spec.tied else weights.read(spec.lm_head)
        self._lm_head = pack_linear(ops, lm_head, None)
        del lm_head
        self._layers: list[_Layer] = []
        for i, layer in enumerate(spec.layers):
            on_layer(i)
            self._layers.append(self._read_layer(layer, _Parameters(ops, weights, layer.params, i)))

    def _read_layer(self, layer: LayerSpec, params: _Parameters) -> _Layer:
        spec = self.spec
        experts = None
        if layer.mlp == "moe":
            gate_up, down = params.read("experts_gate_up"), params.read("experts_down")
            experts = pack_experts(self.ops, gate_up, down, spec.activation)
            del gate_up, down
        return _Layer(
            spec=layer,
            plan=self.attention_shapes.index(layer.attention),
            qkv=params.required_linear("qkv"),
            out=params.required_linear("out"),
            mlp=_Mlp(
                gated=layer.mlp == "gated",
                inner=params.linear("gate_up" if layer.mlp == "gated" else "up"),
                down=params.linear("down"),
                router=params.linear("router"),
                experts=experts,
            ),
            attention_norm=params.norm("attention_norm"),
            attention_post_norm=params.norm("attention_post_norm"),
            mlp_norm=params.norm("mlp_norm"),
            mlp_post_norm=params.norm("mlp_post_norm"),
            qk_norms=self._read_qk_norms(layer.attention, params),
        )

    def _read_qk_norms(self, shape: AttentionShape, params: _Parameters) -> tuple[_Norm, ...]:
        if self.spec.qk_norm == "none":
            return ()
        q_norm, k_norm = params.read("q_norm"), params.read("k_norm")
        if self.spec.qk_norm == "projection":
            return _Norm(q_norm, None), _Norm(k_norm, None)
        heads = (q_norm.expand(shape.num_heads, -1), k_norm.expand(shape.num_kv_heads, -1))
        return (_Norm(torch.cat(heads), None),)

    def forward(
        self, token_ids: Tensor, positions: Tensor, cache: KVCache, plans: Sequence[AttentionPlan]
    ) -> Tensor:
        """See `Model.forward`."""
        turns = {rope: (cos[positions], sin[positions]) for rope, (cos, sin) in self._rope_tables.items()}
        residual = self._embed(token_ids, positions)
        x = None
        for layer, layer_cache in zip(self._layers, cache, strict=True):
            x = self._block(layer, x, residual, turns, layer_cache, plans[layer.plan])
        return self._add(x, residual, self._final_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        logits = linear(self.ops, hidden, self._lm_head).float()
        if self.spec.logits_divisor != 1.0:
            logits = logits / self.spec.logits_divisor
        cap = self.spec.logit_soft_cap
        return torch.tanh(logits / cap) * cap if cap else logits

    def _embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        x = self._embedding[token_ids]
        if self.spec.embedding_multiplier != 1.0:
            x *= torch.tensor(self.spec.embedding_multiplier, dtype=self.dtype)
        if self._positions is not None:
            x += self._positions[positions]
        return x if self._embedding_norm is None else self._norm(x, self._embedding_norm)

    def _block(
        self,
        layer: _Layer,
        x: Tensor | None,
        residual: Tensor,
        turns: dict[RopeSpec, tuple[Tensor, Tensor]],
        cache: tuple[Tensor, Tensor],
        plan: AttentionPlan,
    ) -> Tensor:
        """x: what the block before added last, which `residual` lacks. Returns what this one adds last."""
        x = self._add(x, residual, layer.attention_norm)
        turn = None if layer.spec.rope is None else turns[layer.spec.rope]
        attended = self._attend(layer, x, turn, cache, plan)
        if layer.attention_post_norm is not None:
            attended = self._norm(attended, layer.attention_post_norm)
        if self.spec.parallel:
            if layer.mlp_norm is not None:
                x = self._norm(residual, layer.mlp_norm)
            return self._mlp(layer.mlp, x).add_(attended)
        x = self._add(attended, residual, layer.mlp_norm)
        x = self._mlp(layer.mlp, x)
        return x if layer.mlp_post_norm is None else self._norm(x, layer.mlp_post_norm)

    def _add(self, x: Tensor | None, residual: Tensor, norm: _Norm | None) -> Tensor:
        """residual += x in place; returns its norm, or where there is none the residual itself."""
        if x is not None and self.spec.residual_multiplier != 1.0:
            x *= self.spec.residual_multiplier
        if norm is None:
            return residual if x is None else residual.add_(x)
        if x is None:
            return self._norm(residual, norm)
        if self.spec.norm == "rms":
            return add_rms_norm(self.ops, x, residual, norm.weight, self.spec.norm_eps)
        return add_layer_norm(self.ops, x, residual, norm.weight, norm.bias, self.spec.norm_eps)

    def _norm(self, x: Tensor, norm: _Norm) -> Tensor:
        if self.spec.norm == "rms":
            return rms_norm(self.ops, x, norm.weight, self.spec.norm_eps)
        return layer_norm(self.ops, x, norm.weight, norm.bias, self.spec.norm_eps)

    def _mlp(self, mlp: _Mlp, x: Tensor) -> Tensor:
        """x: [T, hidden_size], normed. Returns a new [T, hidden_size]."""
        ops, spec = self.ops, self.spec
        if mlp.experts is not None:
            assert mlp.router is not None, "experts without a router"
            assert spec.moe is not None, "experts without a way to them"
            router_logits = linear(ops, x, mlp.router)
            weights, ids = route(ops, router_logits, spec.moe.top_k, spec.moe.renormalize)
            return moe(ops, x, weights, ids, mlp.experts)
        assert mlp.inner is not None, "an MLP without its first layer"
        assert mlp.down is not None, "an MLP without its second layer"
        act = act_and_mul if mlp.gated else activate
        return linear(ops, act(ops, linear(ops, x, mlp.inner), spec.activation), mlp.down)

    def _attend(
        self,
        layer: _Layer,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        cache: tuple[Tensor, Tensor],
        plan: AttentionPlan,
    ) -> Tensor:
        """x: [T, hidden_size], normed. Returns a new [T, hidden_size]."""
        ops, shape = self.ops, layer.spec.attention
        qkv = linear(ops, x, layer.qkv)
        num_turned = shape.num_heads + shape.num_kv_heads
        heads = qkv.view(x.shape[0], -1, shape.head_dim)
        qk, values = heads[:, :num_turned], heads[:, num_turned:]
        if len(layer.qk_norms) == 1:
            qk = self._norm(qk, layer.qk_norms[0])
        elif layer.qk_norms:
            sizes = [norm.weight.shape[0] for norm in layer.qk_norms]
            parts = qkv[:, : sum(sizes)].split(sizes, dim=1)
            normed = [self._norm(part, norm) for part, norm in zip(parts, layer.qk_norms, strict=True)]
            qk = torch.cat(normed, dim=1).view(x.shape[0], num_turned, shape.head_dim)
        if turn is not None:
            qk = rotary(ops, qk, *turn)
        q, keys = qk[:, : shape.num_heads], qk[:, shape.num_heads :]
        store_kv(ops, keys, values, *cache, plan.metadata.slot_mapping)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        attention(ops, q, *cache, plan, out)
        return linear(ops, out.view(x.shape[0], -1), layer.out)


class _Parameters:
    """The parameters of one layer, read when they are asked for: one raw tensor at a time is in memory."""

    def __init__(self, ops: OpSet, weights: Weights, params: tuple[Param, ...], layer: int) -> None:
        self._ops = ops
        self._weights = weights
        self._params = {param.name: param for param in params}
        self._layer = layer

    def has(self, name: str) -> bool:
        return name in self._params

    def read(self, name: str) -> Tensor:
        return self._weights.read(self._params[name], self._layer)

    def linear(self, name: str) -> LinearWeight | None:
        return self.required_linear(name) if self.has(name) else None

    def required_linear(self, name: str) -> LinearWeight:
        bias = self.read(f"{name}_bias") if self.has(f"{name}_bias") else None
        return pack_linear(self._ops, self.read(name), bias)

    def norm(self, name: str) -> _Norm | None:
        if not self.has(name):
            return None
        return _Norm(self.read(name), self.read(f"{name}_bias") if self.has(f"{name}_bias") else None)
