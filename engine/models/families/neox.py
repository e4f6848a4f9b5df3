"""GPT-NeoX and Pythia: parallel blocks with two norms, partial rotary positions."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.models.families.fields import activation_of, attention_of, rope_of, window_of
from engine.models.families.tensors import linear, matrix, norm
from engine.models.spec import DecoderSpec, Grouped, LayerSpec, Param
from kernels.attention import AttentionShape

LAYER = "gpt_neox.layers.{i}"


def neox_spec(config: Any, architecture: str) -> DecoderSpec:
    """The spec of a GPT-NeoX config."""
    hidden: int = config.hidden_size
    attention = attention_of(config)
    rope = rope_of(config, attention.head_dim, partial=True)
    params = _layer_params(config, attention)
    window, window_reason = window_of(config, rope)
    lm_head = matrix("lm_head", "embed_out.weight", config.vocab_size, hidden)
    return DecoderSpec(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        norm="layer",
        norm_eps=config.layer_norm_eps,
        activation=activation_of(config),
        max_position_embeddings=window,
        window_reason=window_reason,
        layers=tuple(
            LayerSpec(attention=attention, rope=rope, mlp="plain", params=params)
            for _ in range(config.num_hidden_layers)
        ),
        outer_params=(
            matrix("embedding", "gpt_neox.embed_in.weight", config.vocab_size, hidden),
            *norm("final_norm", "gpt_neox.final_layer_norm", hidden, bias=True),
        ),
        lm_head=msgspec.structs.replace(lm_head, alternatives=((("lm_head.weight", lm_head.shape),),)),
        tied=bool(config.tie_word_embeddings),
        parallel=bool(config.use_parallel_residual),
        ignored_tensors=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    )


def _layer_params(config: Any, attention: AttentionShape) -> tuple[Param, ...]:
    hidden: int = config.hidden_size
    inner: int = config.intermediate_size
    bias = bool(config.attention_bias)
    by_head = Grouped(num_kv_heads=attention.num_heads, queries_per_kv_head=1, head_dim=attention.head_dim)
    return (
        *norm("attention_norm", f"{LAYER}.input_layernorm", hidden, bias=True),
        *linear(
            "qkv", [(f"{LAYER}.attention.query_key_value", 3 * hidden)], hidden, bias=bias, split=by_head
        ),
        *linear("out", [(f"{LAYER}.attention.dense", hidden)], hidden, bias=bias),
        *norm("mlp_norm", f"{LAYER}.post_attention_layernorm", hidden, bias=True),
        *linear("up", [(f"{LAYER}.mlp.dense_h_to_4h", inner)], hidden, bias=True),
        *linear("down", [(f"{LAYER}.mlp.dense_4h_to_h", hidden)], inner, bias=True),
    )
