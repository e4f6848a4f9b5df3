"""Llama and the many that follow it: separate projections under `model.layers.{i}`, one spec per row of
differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct

from engine.errors import UnsupportedModel
from engine.models.families.fields import (
    activation_of,
    architecture_of,
    attention_of,
    refuse,
    rope_of,
    window_of,
)
from engine.models.families.tensors import experts, linear, matrix, norm
from engine.models.spec import DecoderSpec, LayerSpec, MlpKind, MoeSpec, NormKind, Param, RopeSpec
from kernels.attention import AttentionShape

PRE_NORM: Mapping[str, str] = MappingProxyType(
    {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
)
POST_NORM: Mapping[str, str] = MappingProxyType(
    {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
)
SANDWICH: Mapping[str, str] = MappingProxyType(
    {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
)
LAYER = "model.layers.{i}"


class Differences(Struct, frozen=True, kw_only=True):
    """What tells one architecture from Llama. Biases: never (empty), `always`, or as the config's field of
    that name says."""

    qkv_bias: str = ""
    out_bias: str = ""
    mlp_bias: str = ""
    qk_norm: Literal["none", "head", "projection"] = "none"
    norms: Mapping[str, str] = PRE_NORM
    norm: NormKind = "rms"
    norm_eps: str = "rms_norm_eps"
    norm_offset: float = 0.0
    activation: str = "hidden_act"
    partial_rotary: bool = False
    windows: Literal["none", "all", "layer_types"] = "none"
    """Which layers `sliding_window` holds for."""
    query_scalar: bool = False
    """Scores are scaled by 1 / sqrt(query_pre_attn_scalar)."""
    soft_caps: bool = False
    scaled_embedding: bool = False
    """Embeddings are multiplied by sqrt(hidden_size)."""
    multipliers: bool = False
    """Granite's four."""
    fused: bool = False
    """Checkpoints hold q|k|v and gate|up in one tensor each."""
    mlp: MlpKind = "gated"
    experts: tuple[str, str, str, str] = ("", "", "", "")
    """moe: the module that holds them, and the names of an expert's gate, up and down."""


def llama_spec(differences: Differences, config: Any, architecture: str) -> DecoderSpec:
    """The spec of a config of an architecture with these differences."""
    refuse(
        config,
        bidirectional_attention=bool(getattr(config, "use_bidirectional_attention", False)),
        attention_soft_caps=not differences.soft_caps
        and getattr(config, "attn_logit_softcapping", None) is not None,
    )
    hidden: int = config.hidden_size
    layers = _layers(differences, config)
    window, window_reason = window_of(config, next((layer.rope for layer in layers if layer.rope), None))
    embedding_multiplier, residual_multiplier, logits_divisor = _multipliers(differences, config)
    return DecoderSpec(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        norm=differences.norm,
        norm_eps=getattr(config, differences.norm_eps),
        activation=activation_of(config, differences.activation),
        max_position_embeddings=window,
        window_reason=window_reason,
        layers=layers,
        outer_params=(
            matrix("embedding", "model.embed_tokens.weight", config.vocab_size, hidden),
            *_norm(differences, "final_norm", "model.norm", hidden),
        ),
        lm_head=matrix("lm_head", "lm_head.weight", config.vocab_size, hidden),
        tied=bool(config.tie_word_embeddings),
        moe=_moe(config) if differences.mlp == "moe" else None,
        qk_norm=differences.qk_norm,
        embedding_multiplier=embedding_multiplier,
        residual_multiplier=residual_multiplier,
        logits_divisor=logits_divisor,
        logit_soft_cap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
        ignored_tensors=("*.rotary_emb.inv_freq",),
    )


def _multipliers(differences: Differences, config: Any) -> tuple[float, float, float]:
    """Of the embedding, of what is added to the residual, and what divides the logits."""
    if differences.scaled_embedding:
        return config.hidden_size**0.5, 1.0, 1.0
    if differences.multipliers:
        return (
            float(config.embedding_multiplier),
            float(config.residual_multiplier),
            float(config.logits_scaling),
        )
    return 1.0, 1.0, 1.0


def _moe(config: Any) -> MoeSpec:
    return MoeSpec(
        num_experts=_num_experts(config),
        top_k=config.num_experts_per_tok,
        renormalize=bool(getattr(config, "norm_topk_prob", True)),
    )


def _num_experts(config: Any) -> int:
    """Mixtral says num_local_experts, Qwen3-MoE num_experts; which of the two is read as both has changed."""
    return getattr(config, "num_experts", None) or config.num_local_experts


def _layers(differences: Differences, config: Any) -> tuple[LayerSpec, ...]:
    attention = _attention(differences, config)
    params: dict[MlpKind, tuple[Param, ...]] = {}
    layers: list[LayerSpec] = []
    for i in range(config.num_hidden_layers):
        mlp = _mlp_kind(differences, config, i)
        if mlp not in params:
            params[mlp] = _layer_params(differences, config, attention, mlp)
        window = _window(differences, config, i)
        layers.append(
            LayerSpec(
                attention=replace(attention, window=window),
                rope=_rope(differences, config, attention.head_dim, i),
                mlp=mlp,
                params=params[mlp],
            )
        )
    return tuple(layers)


def _attention(differences: Differences, config: Any) -> AttentionShape:
    attention = attention_of(config)
    if differences.query_scalar:
        attention = replace(attention, scale=config.query_pre_attn_scalar**-0.5)
    if differences.multipliers:
        attention = replace(attention, scale=float(config.attention_multiplier))
    if differences.soft_caps:
        attention = replace(attention, soft_cap=float(config.attn_logit_softcapping or 0.0))
    return attention


def _window(differences: Differences, config: Any, layer: int) -> int:
    """0 also for a window that no sequence outgrows."""
    window: int = getattr(config, "sliding_window", None) or 0
    if differences.windows == "none" or window >= config.max_position_embeddings:
        return 0
    if differences.windows == "all":
        return window
    kind = config.layer_types[layer]
    if kind not in ("full_attention", "sliding_attention"):
        raise UnsupportedModel(f"{architecture_of(config)} with a layer of type {kind!r} is not supported")
    return window if kind == "sliding_attention" else 0


def _rope(differences: Differences, config: Any, head_dim: int, layer: int) -> RopeSpec | None:
    turned = getattr(config, "no_rope_layers", None)  # SmolLM3: 1 means that the layer turns
    if turned is not None and not turned[layer]:
        return None
    by_type = "full_attention" in (config.rope_parameters or {})
    layer_type = config.layer_types[layer] if by_type else ""
    return rope_of(config, head_dim, layer_type=layer_type, partial=differences.partial_rotary)


def _mlp_kind(differences: Differences, config: Any, layer: int) -> MlpKind:
    if differences.mlp != "moe":
        return differences.mlp
    dense = layer in (getattr(config, "mlp_only_layers", None) or ())
    sparse = (layer + 1) % (getattr(config, "decoder_sparse_step", None) or 1) == 0
    return "gated" if dense or not sparse else "moe"


def _layer_params(
    differences: Differences, config: Any, attention: AttentionShape, mlp: MlpKind
) -> tuple[Param, ...]:
    hidden: int = config.hidden_size
    q_rows = attention.num_heads * attention.head_dim
    kv_rows = attention.num_kv_heads * attention.head_dim
    qkv = [("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)]
    if differences.fused:
        qkv = [("qkv_proj", q_rows + 2 * kv_rows)]
    modules = [(f"{LAYER}.self_attn.{name}", rows) for name, rows in qkv]
    params = [
        *linear("qkv", modules, hidden, bias=_flag(config, differences.qkv_bias)),
        *linear(
            "out",
            [(f"{LAYER}.self_attn.o_proj", hidden)],
            q_rows,
            bias=_flag(config, differences.out_bias),
        ),
        *_mlp_params(differences, config, mlp),
    ]
    for name, module in differences.norms.items():
        params += _norm(differences, name, f"{LAYER}.{module}", hidden)
    if differences.qk_norm != "none":
        by_head = differences.qk_norm == "head"
        for name, rows in (("q_norm", q_rows), ("k_norm", kv_rows)):
            size = attention.head_dim if by_head else rows
            params += _norm(differences, name, f"{LAYER}.self_attn.{name}", size)
    return tuple(params)


def _mlp_params(differences: Differences, config: Any, mlp: MlpKind) -> list[Param]:
    hidden: int = config.hidden_size
    inner: int = config.intermediate_size
    bias = _flag(config, differences.mlp_bias)
    prefix = f"{LAYER}.mlp"
    match mlp:
        case "moe":
            module, *names = differences.experts
            moe_inner: int = getattr(config, "moe_intermediate_size", None) or inner
            sizes = (_num_experts(config), moe_inner, hidden)
            router: tuple[tuple[str, tuple[int, ...]], ...] = (
                (f"{LAYER}.{module}.gate.weight", (sizes[0], hidden)),
            )
            other = ((f"{prefix}.gate.weight", (sizes[0], hidden)),)
            return [
                Param(name="router", shape=(sizes[0], hidden), sources=router, alternatives=(other,)),
                *experts(f"{LAYER}.{module}", (names[0], names[1], names[2]), sizes, prefix),
            ]
        case "plain":
            return [
                *linear("up", [(f"{prefix}.c_fc", inner)], hidden, bias=bias),
                *linear("down", [(f"{prefix}.c_proj", hidden)], inner, bias=bias),
            ]
        case "gated":
            gate_up = [(f"{prefix}.gate_proj", inner), (f"{prefix}.up_proj", inner)]
            if differences.fused:
                gate_up = [(f"{prefix}.gate_up_proj", 2 * inner)]
            return [
                *linear("gate_up", gate_up, hidden, bias=bias),
                *linear("down", [(f"{prefix}.down_proj", hidden)], inner, bias=bias),
            ]


def _norm(differences: Differences, name: str, module: str, size: int) -> list[Param]:
    return norm(name, module, size, bias=differences.norm == "layer", offset=differences.norm_offset)


def _flag(config: Any, name: str) -> bool:
    return name == "always" or bool(name and getattr(config, name, False))
