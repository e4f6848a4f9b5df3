"""BLOOM: alibi, a norm on the embedding."""

from __future__ import annotations

from typing import Any

from engine.models.families.fields import refuse
from engine.models.families.tensors import linear, matrix, norm
from engine.models.rope import alibi_slopes
from engine.models.spec import DecoderSpec, Grouped, LayerSpec, Param
from kernels.attention import AttentionShape

LAYER = "transformer.h.{i}"
WINDOW = 2048
"""What BLOOM was trained with; only some of its configs say so (`seq_length`)."""


def bloom_spec(config: Any, architecture: str) -> DecoderSpec:
    """The spec of a BLOOM config."""
    refuse(
        config, apply_residual_connection_post_layernorm=bool(config.apply_residual_connection_post_layernorm)
    )
    hidden: int = config.hidden_size
    num_heads: int = config.num_attention_heads
    head_dim = hidden // num_heads
    attention = AttentionShape(
        num_heads, num_heads, head_dim, head_dim**-0.5, alibi_slopes=alibi_slopes(num_heads)
    )
    params = _layer_params(hidden, num_heads)
    return DecoderSpec(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        activation="gelu_tanh",
        max_position_embeddings=getattr(config, "seq_length", None) or WINDOW,
        layers=tuple(
            LayerSpec(attention=attention, rope=None, mlp="plain", params=params)
            for _ in range(config.num_hidden_layers)
        ),
        outer_params=(
            matrix("embedding", "transformer.word_embeddings.weight", config.vocab_size, hidden),
            *norm("embedding_norm", "transformer.word_embeddings_layernorm", hidden, bias=True),
            *norm("final_norm", "transformer.ln_f", hidden, bias=True),
        ),
        lm_head=matrix("lm_head", "lm_head.weight", config.vocab_size, hidden),
        tied=bool(config.tie_word_embeddings),
        optional_prefix="transformer.",
    )


def _layer_params(hidden: int, num_heads: int) -> tuple[Param, ...]:
    by_head = Grouped(num_kv_heads=num_heads, queries_per_kv_head=1, head_dim=hidden // num_heads)
    qkv = [(f"{LAYER}.self_attention.query_key_value", 3 * hidden)]
    return (
        *norm("attention_norm", f"{LAYER}.input_layernorm", hidden, bias=True),
        *linear("qkv", qkv, hidden, bias=True, split=by_head),
        *linear("out", [(f"{LAYER}.self_attention.dense", hidden)], hidden, bias=True),
        *norm("mlp_norm", f"{LAYER}.post_attention_layernorm", hidden, bias=True),
        *linear("up", [(f"{LAYER}.mlp.dense_h_to_4h", 4 * hidden)], hidden, bias=True),
        *linear("down", [(f"{LAYER}.mlp.dense_4h_to_h", hidden)], 4 * hidden, bias=True),
    )
