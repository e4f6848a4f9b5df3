"""The decoder: one forward pass for every family, as its spec says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from msgspec.structs import replace
from torch import Tensor

from engine.models.model import KVCache
from engine.models.rope import rope_tables
from engine.models.spec import DecoderSpec, LayerSpec, Param, RopeSpec
from engine.models.weights import Scratch, Weights
from kernels.activation import Activation, act_and_mul, activate
from kernels.attention import AttentionPlan, AttentionShape, LayerCache, attention
from kernels.elements import add, copy, scale, take
from kernels.linear import LinearWeight, linear, pack_linear, pack_router
from kernels.moe import ExpertWeights, moe, pack_experts, route
from kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.opset import OpSet
from kernels.qkv import HeadNorm, Turn, rotate_and_store


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
    head_norm: HeadNorm | None
    """Of every head of queries and keys."""
    whole_norms: tuple[tuple[int, _Norm], ...]
    """Of a token's queries together, and of its keys: where each begins among its projections, and how it
    is normed."""


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
        self.dtype = ops.computes_in or weights.dtype
        self.device = weights.device
        self.is_recordable = ops.is_recordable
        self.vocab_size = spec.vocab_size
        self.hidden_size = spec.hidden_size
        self.num_layers = spec.num_layers
        self.attention_shapes: tuple[AttentionShape, ...] = tuple(
            dict.fromkeys(layer.attention for layer in spec.layers)
        )
        self._embedding_multiplier = float(torch.tensor(spec.embedding_multiplier, dtype=self.dtype))
        ropes = dict.fromkeys(layer.rope for layer in spec.layers if layer.rope is not None)
        self._rope_tables = {rope: rope_tables(rope, num_positions, self.device) for rope in ropes}
        # What is largest comes first, while little else is held; its scratch memory goes at once.
        outer = _Parameters(ops, weights, (*spec.outer_params, spec.lm_head), 0, _Scratches())
        self._embedding, self._lm_head = _read_vocabulary(spec.tied, ops, outer)
        self._positions = outer.read("positions") if outer.has("positions") else None
        self._embedding_norm = outer.norm("embedding_norm")
        self._final_norm = outer.norm("final_norm")
        del outer
        scratches = _Scratches()
        self._layers: list[_Layer] = []
        for i, layer in enumerate(spec.layers):
            on_layer(i)
            params = _Parameters(ops, weights, layer.params, i, scratches)
            self._layers.append(self._read_layer(layer, params))

    def _read_layer(self, layer: LayerSpec, params: _Parameters) -> _Layer:
        spec = self.spec
        experts = None
        if layer.mlp == "moe":
            experts = params.experts(spec.activation)
        return _Layer(
            spec=layer,
            plan=self.attention_shapes.index(layer.attention),
            qkv=params.required_linear("qkv"),
            out=params.required_linear("out"),
            mlp=_Mlp(
                gated=layer.mlp == "gated",
                inner=params.linear("gate_up" if layer.mlp == "gated" else "up"),
                down=params.linear("down"),
                router=params.router() if params.has("router") else None,
                experts=experts,
            ),
            attention_norm=params.norm("attention_norm"),
            attention_post_norm=params.norm("attention_post_norm"),
            mlp_norm=params.norm("mlp_norm"),
            mlp_post_norm=params.norm("mlp_post_norm"),
            head_norm=self._read_head_norm(layer.attention, params),
            whole_norms=self._read_whole_norms(params),
        )

    def _read_head_norm(self, shape: AttentionShape, params: _Parameters) -> HeadNorm | None:
        if self.spec.qk_norm != "head":
            return None
        assert self.spec.norm == "rms", "a norm of each head is a root mean square norm"
        q_norm, k_norm = params.read("q_norm"), params.read("k_norm")
        heads = (q_norm.expand(shape.num_heads, -1), k_norm.expand(shape.num_kv_heads, -1))
        return HeadNorm(torch.cat(heads), self.spec.norm_eps)

    def _read_whole_norms(self, params: _Parameters) -> tuple[tuple[int, _Norm], ...]:
        if self.spec.qk_norm != "projection":
            return ()
        q_norm, k_norm = params.read("q_norm"), params.read("k_norm")
        return (0, _Norm(q_norm, None)), (q_norm.shape[0], _Norm(k_norm, None))

    def forward(
        self, token_ids: Tensor, positions: Tensor, cache: KVCache, plans: Sequence[AttentionPlan]
    ) -> Tensor:
        """See `Model.forward`."""
        turns = {
            rope: Turn(take(self.ops, cos, positions), take(self.ops, sin, positions))
            for rope, (cos, sin) in self._rope_tables.items()
        }
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
        if self._embedding is not None:
            x = take(self.ops, self._embedding, token_ids).to(self.dtype)
        else:
            assert self.ops.rows is not None, "an embedding that nobody can read"
            x = self.ops.rows(self._lm_head, token_ids)
        if self.spec.embedding_multiplier != 1.0:
            scale(self.ops, x, self._embedding_multiplier)
        if self._positions is not None:
            add(self.ops, take(self.ops, self._positions, positions).to(self.dtype), x)
        return x if self._embedding_norm is None else self._norm(x, self._embedding_norm)

    def _block(
        self,
        layer: _Layer,
        x: Tensor | None,
        residual: Tensor,
        turns: dict[RopeSpec, Turn],
        cache: LayerCache,
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
            x = self._mlp(layer.mlp, x)
            add(self.ops, attended, x)
            return x
        x = self._add(attended, residual, layer.mlp_norm)
        x = self._mlp(layer.mlp, x)
        return x if layer.mlp_post_norm is None else self._norm(x, layer.mlp_post_norm)

    def _add(self, x: Tensor | None, residual: Tensor, norm: _Norm | None) -> Tensor:
        """residual += x in place; returns its norm, or where there is none the residual itself."""
        if x is not None and self.spec.residual_multiplier != 1.0:
            scale(self.ops, x, self.spec.residual_multiplier)
        if norm is None:
            if x is not None:
                add(self.ops, x, residual)
            return residual
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
        turn: Turn | None,
        cache: LayerCache,
        plan: AttentionPlan,
    ) -> Tensor:
        """x: [T, hidden_size], normed. Returns a new [T, hidden_size]."""
        ops = self.ops
        qkv = linear(ops, x, layer.qkv)
        for start, norm in layer.whole_norms:
            part = qkv[:, start : start + norm.weight.shape[0]]
            copy(ops, self._norm(part, norm), part)
        q = rotate_and_store(ops, qkv, layer.head_norm, turn, plan, cache)
        out = torch.empty_like(q)
        attention(ops, q, cache, plan, out)
        return linear(ops, out.view(x.shape[0], -1), layer.out)


@dataclass(frozen=True, slots=True)
class _Scratches:
    """Where parameters are until they are packed: two at a time at most."""

    first: Scratch = field(default_factory=Scratch)
    second: Scratch = field(default_factory=Scratch)


class _Parameters:
    """The parameters of one layer, read when they are asked for: one raw tensor at a time is in memory."""

    def __init__(
        self, ops: OpSet, weights: Weights, params: tuple[Param, ...], layer: int, scratches: _Scratches
    ) -> None:
        self._ops = ops
        self._weights = weights
        self._params = {param.name: param for param in params}
        self._layer = layer
        self._scratches = scratches

    def has(self, name: str) -> bool:
        return name in self._params

    def read(self, name: str) -> Tensor:
        return self._weights.read(self._params[name], self._layer)

    def linear(self, name: str) -> LinearWeight | None:
        return self.required_linear(name) if self.has(name) else None

    def required_linear(self, name: str) -> LinearWeight:
        bias = None
        if self.has(f"{name}_bias"):
            param = self._params[f"{name}_bias"]
            # Added to sums in float32, unless the op set wants it of the weight's type.
            param = replace(param, float32=param.float32 or self._ops.copies_weights)
            bias = self._weights.read(param, self._layer)
        return pack_linear(self._ops, self._to_pack(name, self._scratches.first), bias)

    def router(self) -> LinearWeight:
        return pack_router(self._ops, self._to_pack("router", self._scratches.first))

    def experts(self, activation: Activation) -> ExpertWeights:
        gate_up = self._to_pack("experts_gate_up", self._scratches.first)
        down = self._to_pack("experts_down", self._scratches.second)
        return pack_experts(self._ops, gate_up, down.to(gate_up.dtype), activation)

    def norm(self, name: str) -> _Norm | None:
        if not self.has(name):
            return None
        return _Norm(self.read(name), self.read(f"{name}_bias") if self.has(f"{name}_bias") else None)

    def _to_pack(self, name: str, scratch: Scratch) -> Tensor:
        if self._ops.copies_weights:
            return self._weights.lend(self._params[name], self._layer, scratch)
        return self.read(name)


def _read_vocabulary(tied: bool, ops: OpSet, params: _Parameters) -> tuple[Tensor | None, LinearWeight]:
    """The embedding, None where its rows are read out of the output matrix; and that matrix."""
    if not tied:
        return params.read("embedding"), params.required_linear("lm_head")
    if ops.rows is not None:
        return None, params.required_linear("embedding")
    embedding = params.read("embedding")
    return embedding, pack_linear(ops, embedding, None)
