"""The families: how a Hugging Face config becomes a spec, and which tensors its checkpoints hold.

A family is a row of differences; sizes come from the config, which AutoConfig reads. To add one that the
decoder's seams already cover, add a row to `FAMILIES`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from engine.errors import ModelError, UnsupportedModel
from engine.models.spec import DecoderSpec, Param, RopeSpec


class Family(Struct, frozen=True, kw_only=True):
    """What tells one architecture from another."""

    model_type: str
    """The config's own name for it: decides how transformers reads the fields."""
    qkv_bias: Literal["always", "never", "attention_bias"]
    """`attention_bias`: as the config's field of that name says."""
    out_bias: Literal["never", "attention_bias"] = "never"
    mlp_bias: Literal["never", "mlp_bias"] = "never"
    qk_norm: bool = False


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(
        model_type="llama", qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "Qwen2ForCausalLM": Family(model_type="qwen2", qkv_bias="always"),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3", qkv_bias="attention_bias", out_bias="attention_bias", qk_norm=True
    ),
}
"""By the name in the config's `architectures`."""

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


def spec_of(config: Any) -> DecoderSpec:
    """The spec of a transformers config.

    Raises UnsupportedModel with what was found and what there is, ModelError for a config without a field.
    """
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    _refuse_variants(config, architecture)
    num_heads: int = config.num_attention_heads
    sizes: dict[str, int] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": getattr(config, "num_key_value_heads", None) or num_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // num_heads,
    }
    inner: int = config.intermediate_size
    flags: dict[str, bool] = {
        "qkv_bias": family.qkv_bias == "always" or _flag(config, family.qkv_bias),
        "out_bias": _flag(config, family.out_bias),
        "mlp_bias": _flag(config, family.mlp_bias),
    }
    tied = bool(config.tie_word_embeddings)
    return DecoderSpec(
        architecture=architecture,
        num_layers=config.num_hidden_layers,
        norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        rope=_rope_of(config, architecture),
        qk_norm=family.qk_norm,
        layer_params=_layer_params(sizes, inner, family.qk_norm, flags),
        outer_params=_outer_params(sizes, tied),
        ignored_tensors=("*.rotary_emb.inv_freq", *((LM_HEAD,) if tied else ())),
        **sizes,
    )


def with_own_lm_head(spec: DecoderSpec) -> DecoderSpec:
    """The same model with an output matrix of its own, whatever its config says of the embedding."""
    if any(param.name == "lm_head" for param in spec.outer_params):
        return spec
    lm_head = _lm_head((spec.vocab_size, spec.hidden_size))
    return msgspec.structs.replace(spec, outer_params=(*spec.outer_params, lm_head))


def _architecture(config: Any) -> str:
    """The first architecture that there is a family for."""
    named: list[str] = list(config.architectures or [])
    for name in named:
        if name in FAMILIES:
            return name
    what = ", ".join(named) or f"none (model_type {config.model_type!r})"
    raise UnsupportedModel(f"architecture {what} is not supported; supported are {', '.join(FAMILIES)}")


def _refuse_variants(config: Any, architecture: str) -> None:
    """What a config of a known architecture may ask for and the decoder does not do."""
    found: list[str] = []
    model_type = FAMILIES[architecture].model_type
    if config.model_type != model_type:  # its fields may have other names, so nothing else is looked at
        raise UnsupportedModel(
            f"{architecture} with model_type {config.model_type!r} (supported: {model_type!r}) "
            "is not supported"
        )
    if getattr(config, "is_causal", True) is False:
        found.append("attention that is not causal (is_causal)")
    num_heads, num_kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if num_kv_heads and num_heads % num_kv_heads:
        found.append(f"{num_heads} attention heads, which {num_kv_heads} key-value heads do not divide,")
    if getattr(config, "quantization_config", None) is not None:
        found.append("quantized weights (quantization_config)")
    if config.hidden_act != "silu":
        found.append(f"hidden_act {config.hidden_act!r} (supported: 'silu')")
    layer_types = set(getattr(config, "layer_types", None) or ())
    windowed = (
        layer_types != {"full_attention"} if layer_types else getattr(config, "use_sliding_window", False)
    )
    if windowed:  # use_sliding_window may be set and no layer be windowed
        found.append("sliding window attention")
    if found:
        raise UnsupportedModel(f"{architecture} with {' and '.join(found)} is not supported")


def _flag(config: Any, name: str) -> bool:
    return name != "never" and bool(getattr(config, name, False))


def _rope_of(config: Any, architecture: str) -> RopeSpec:
    params: dict[str, Any] = dict(config.rope_parameters or {})
    kind = params.get("rope_type", "default")
    theta = float(params.get("rope_theta", 10_000.0))
    if params.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"{architecture} with partial rotary positions is not supported")
    match kind:
        case "default":
            return RopeSpec(kind="default", theta=theta)
        case "linear":
            return RopeSpec(kind="linear", theta=theta, factor=_rope_number(params, "factor"))
        case "llama3":
            return RopeSpec(
                kind="llama3",
                theta=theta,
                factor=_rope_number(params, "factor"),
                low_freq_factor=_rope_number(params, "low_freq_factor"),
                high_freq_factor=_rope_number(params, "high_freq_factor"),
                original_max_position_embeddings=int(
                    _rope_number(params, "original_max_position_embeddings")
                ),
            )
        case _:
            raise UnsupportedModel(
                f"{architecture} with rope type {kind!r} is not supported; "
                "supported are 'default', 'linear' and 'llama3'"
            )


def _rope_number(params: dict[str, Any], name: str) -> float:
    value = params.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(
            f"config.json is invalid: rope type {params.get('rope_type')!r} needs a number {name!r}, "
            f"found {value!r}"
        )
    return float(value)


def _layer_params(
    sizes: dict[str, int], inner: int, qk_norm: bool, flags: dict[str, bool]
) -> tuple[Param, ...]:
    hidden, head_dim = sizes["hidden_size"], sizes["head_dim"]
    q_rows, kv_rows = sizes["num_heads"] * head_dim, sizes["num_kv_heads"] * head_dim
    qkv = (("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows))
    params = [
        *_linear("qkv", "self_attn", qkv, hidden, bias=flags["qkv_bias"]),
        *_linear("out", "self_attn", (("o_proj", hidden),), q_rows, bias=flags["out_bias"]),
        *_linear(
            "gate_up", "mlp", (("gate_proj", inner), ("up_proj", inner)), hidden, bias=flags["mlp_bias"]
        ),
        *_linear("down", "mlp", (("down_proj", hidden),), inner, bias=flags["mlp_bias"]),
        _norm("input_norm", "model.layers.{i}.input_layernorm", hidden),
        _norm("post_attention_norm", "model.layers.{i}.post_attention_layernorm", hidden),
    ]
    if qk_norm:
        params += [
            _norm("q_norm", "model.layers.{i}.self_attn.q_norm", head_dim),
            _norm("k_norm", "model.layers.{i}.self_attn.k_norm", head_dim),
        ]
    return tuple(params)


def _outer_params(sizes: dict[str, int], tied: bool) -> tuple[Param, ...]:
    matrix = (sizes["vocab_size"], sizes["hidden_size"])
    params = [
        Param(name="embedding", sources=((EMBEDDING, matrix),)),
        _norm("final_norm", "model.norm", sizes["hidden_size"]),
    ]
    return tuple(params) if tied else (*params, _lm_head(matrix))


def _lm_head(matrix: tuple[int, int]) -> Param:
    return Param(name="lm_head", sources=((LM_HEAD, matrix),))


def _linear(
    name: str, module: str, parts: tuple[tuple[str, int], ...], columns: int, *, bias: bool
) -> list[Param]:
    """A linear layer that fuses the rows of one or several checkpoint layers."""
    prefix = "model.layers.{i}." + module
    weights = tuple((f"{prefix}.{part}.weight", (rows, columns)) for part, rows in parts)
    params = [Param(name=name, sources=weights)]
    if bias:
        biases = tuple((f"{prefix}.{part}.bias", (rows,)) for part, rows in parts)
        params.append(Param(name=f"{name}_bias", sources=biases))
    return params


def _norm(name: str, source: str, size: int) -> Param:
    return Param(name=name, sources=((f"{source}.weight", (size,)),))
