"""Falcon in its three shapes: 7B (parallel, one KV head), the new decoder of 40B, 180B and 11B (parallel,
grouped), and RefinedWeb 1B (sequential, alibi)."""

from __future__ import annotations

from typing import Any

import torch

from engine.models.families.fields import activation_of, refuse, rope_of, window_of
from engine.models.families.tensors import linear, matrix, norm
from engine.models.rope import alibi_slopes
from engine.models.spec import DecoderSpec, Grouped, LayerSpec, Param, Split
from kernels.attention import AttentionShape

LAYER = "transformer.h.{i}"


def falcon_spec(config: Any, architecture: str) -> DecoderSpec:
    """The spec of a Falcon config."""
    new: bool = config.new_decoder_architecture
    refuse(
        config,
        new_decoder_architecture_but_not_parallel_attn=new and not config.parallel_attn,
        two_norms_in_parallel_attn=not new
        and bool(config.parallel_attn)
        and config.num_ln_in_parallel_attn == 2,
    )
    hidden: int = config.hidden_size
    attention = _attention(config)
    rope = None if config.alibi else rope_of(config, attention.head_dim)
    params = _layer_params(config, attention)
    window, window_reason = window_of(config, rope)
    return DecoderSpec(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        activation=activation_of(config, "activation"),
        max_position_embeddings=window,
        window_reason=window_reason,
        layers=tuple(
            LayerSpec(attention=attention, rope=rope, mlp="plain", params=params)
            for _ in range(config.num_hidden_layers)
        ),
        outer_params=(
            matrix("embedding", "transformer.word_embeddings.weight", config.vocab_size, hidden),
            *norm("final_norm", "transformer.ln_f", hidden, bias=True),
        ),
        lm_head=matrix("lm_head", "lm_head.weight", config.vocab_size, hidden),
        tied=bool(config.tie_word_embeddings),
        parallel=bool(config.parallel_attn),
        ignored_tensors=("*.rotary_emb.inv_freq", "*.maybe_rotary.inv_freq"),
    )


def _attention(config: Any) -> AttentionShape:
    num_heads: int = config.num_attention_heads
    head_dim = config.hidden_size // num_heads
    num_kv_heads = num_heads
    if config.new_decoder_architecture:
        num_kv_heads = config.num_kv_heads
    elif config.multi_query:
        num_kv_heads = 1
    scale = head_dim**-0.5
    slopes: tuple[float, ...] = ()
    if config.alibi:  # rounded as in training, and scaled together with the scores
        rounded = torch.tensor(alibi_slopes(num_heads), dtype=torch.bfloat16)
        slopes = tuple(slope * scale for slope in rounded.tolist())
    return AttentionShape(num_heads, num_kv_heads, head_dim, scale, alibi_slopes=slopes)


def _layer_params(config: Any, attention: AttentionShape) -> tuple[Param, ...]:
    hidden: int = config.hidden_size
    inner: int = config.ffn_hidden_size
    bias = bool(config.bias)
    head_dim, num_kv_heads = attention.head_dim, attention.num_kv_heads
    qkv_rows = (attention.num_heads + 2 * num_kv_heads) * head_dim
    split: Split = "rows"
    if config.new_decoder_architecture or not config.multi_query:
        per_kv_head = attention.num_heads // num_kv_heads
        split = Grouped(num_kv_heads=num_kv_heads, queries_per_kv_head=per_kv_head, head_dim=head_dim)
    qkv = [(f"{LAYER}.self_attention.query_key_value", qkv_rows)]
    return (
        *_norms(config),
        *linear("qkv", qkv, hidden, bias=bias, split=split),
        *linear("out", [(f"{LAYER}.self_attention.dense", hidden)], hidden, bias=bias),
        *linear("up", [(f"{LAYER}.mlp.dense_h_to_4h", inner)], hidden, bias=bias),
        *linear("down", [(f"{LAYER}.mlp.dense_4h_to_h", hidden)], inner, bias=bias),
    )


def _norms(config: Any) -> list[Param]:
    names = {"attention_norm": "input_layernorm"}
    if not config.parallel_attn:
        names["mlp_norm"] = "post_attention_layernorm"
    elif config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):
        names = {"attention_norm": "ln_attn", "mlp_norm": "ln_mlp"}
    params: list[Param] = []
    for name, module in names.items():
        params += norm(name, f"{LAYER}.{module}", config.hidden_size, bias=True)
    return params
