"""GPT-2, and StarCoder (gpt_bigcode), which is GPT-2 with ordinary linear layers and one KV head."""

from __future__ import annotations

from typing import Any

from engine.models.families.fields import activation_of, attention_of, refuse
from engine.models.families.tensors import linear, matrix, norm
from engine.models.spec import DecoderSpec, Grouped, LayerSpec, Param, Split
from kernels.attention import AttentionShape

LAYER = "transformer.h.{i}"


def gpt2_spec(config: Any, architecture: str) -> DecoderSpec:
    """The spec of a GPT-2 or gpt_bigcode config."""
    refuse(config, cross_attention=bool(config.add_cross_attention))
    bigcode = config.model_type == "gpt_bigcode"
    hidden: int = config.hidden_size
    params = _layer_params(config, attention_of(config), "rows" if bigcode else "transposed")
    window: int = config.max_position_embeddings
    return DecoderSpec(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        activation=activation_of(config, "activation_function"),
        max_position_embeddings=window,
        layers=tuple(
            LayerSpec(attention=_attention(config, i), rope=None, mlp="plain", params=params)
            for i in range(config.num_hidden_layers)
        ),
        outer_params=(
            matrix("embedding", "transformer.wte.weight", config.vocab_size, hidden),
            matrix("positions", "transformer.wpe.weight", window, hidden),
            *norm("final_norm", "transformer.ln_f", hidden, bias=True),
        ),
        lm_head=matrix("lm_head", "lm_head.weight", config.vocab_size, hidden),
        tied=bool(config.tie_word_embeddings),
        optional_prefix="transformer.",
        ignored_tensors=("*.attn.bias", "*.attn.masked_bias"),
    )


def _attention(config: Any, layer: int) -> AttentionShape:
    attention = attention_of(config)
    scale = attention.scale if config.scale_attn_weights else 1.0
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        scale /= layer + 1
    return AttentionShape(attention.num_heads, attention.num_kv_heads, attention.head_dim, scale)


def _layer_params(config: Any, attention: AttentionShape, split: Split) -> tuple[Param, ...]:
    hidden: int = config.hidden_size
    inner: int = config.n_inner or 4 * hidden
    qkv_rows = (attention.num_heads + 2 * attention.num_kv_heads) * attention.head_dim
    qkv_split = split
    if split == "rows" and attention.num_kv_heads > 1:  # gpt_bigcode without multi_query mixes them by head
        qkv_split = Grouped(
            num_kv_heads=attention.num_heads, queries_per_kv_head=1, head_dim=attention.head_dim
        )
    return (
        *norm("attention_norm", f"{LAYER}.ln_1", hidden, bias=True),
        *linear("qkv", [(f"{LAYER}.attn.c_attn", qkv_rows)], hidden, bias=True, split=qkv_split),
        *linear("out", [(f"{LAYER}.attn.c_proj", hidden)], hidden, bias=True, split=split),
        *norm("mlp_norm", f"{LAYER}.ln_2", hidden, bias=True),
        *linear("up", [(f"{LAYER}.mlp.c_fc", inner)], hidden, bias=True, split=split),
        *linear("down", [(f"{LAYER}.mlp.c_proj", hidden)], inner, bias=True, split=split),
    )
