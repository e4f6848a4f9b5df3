"""Reading a transformers config: what every family asks of it, and which variants are refused."""

from __future__ import annotations

import math
from typing import Any

from engine.errors import ModelError, UnsupportedModel
from engine.models.spec import RopeSpec
from kernels.activation import Activation
from kernels.attention import AttentionShape

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""transformers' names for them; three are one formula written in three ways."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


def activation_of(config: Any, field: str = "hidden_act") -> Activation:
    """The activation that a field names. Raises UnsupportedModel."""
    name = getattr(config, field)
    if name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"{architecture_of(config)} with {field} {name!r} is not supported; "
            f"supported are {', '.join(map(repr, ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def architecture_of(config: Any) -> str:
    """The config's own name of its architecture, for messages."""
    return next(iter(config.architectures or []), f"model_type {config.model_type!r}")


def refuse(config: Any, **found: bool) -> None:
    """Raises UnsupportedModel with the words that are true; underscores stand for spaces."""
    words = [word.replace("_", " ") for word, present in found.items() if present]
    if words:
        raise UnsupportedModel(f"{architecture_of(config)} with {' and '.join(words)} is not supported")


def attention_of(config: Any) -> AttentionShape:
    """Heads as most configs name them, scaled by 1 / sqrt(head_dim). Raises UnsupportedModel."""
    num_heads: int = config.num_attention_heads
    num_kv_heads: int = getattr(config, "num_key_value_heads", None) or num_heads
    if num_heads % num_kv_heads:
        raise UnsupportedModel(
            f"{architecture_of(config)} with {num_heads} attention heads, which {num_kv_heads} key-value "
            "heads do not divide, is not supported"
        )
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return AttentionShape(num_heads, num_kv_heads, head_dim, head_dim**-0.5)


def rope_of(config: Any, head_dim: int, *, layer_type: str = "", partial: bool = False) -> RopeSpec:
    """The rotary positions of a config, or of the layers of one type where it has them apart.

    partial: whether this architecture heeds `partial_rotary_factor`. Raises UnsupportedModel for a kind that
    nobody here computes, ModelError for numbers that are missing.
    """
    params: dict[str, Any] = dict(config.rope_parameters or {})
    if layer_type:
        params = dict(params.get(layer_type) or {})
    kind = params.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(
            f"{architecture_of(config)} with rope type {kind!r} is not supported; "
            f"supported are {', '.join(map(repr, ROPE_TYPES))}"
        )
    rotary_factor = params.get("partial_rotary_factor", 1.0)
    refuse(config, partial_rotary_positions=rotary_factor != 1.0 and not partial)
    rotary_dim = int(head_dim * rotary_factor)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise UnsupportedModel(
            f"{architecture_of(config)} with {rotary_dim} rotary dimensions of {head_dim} is not supported: "
            "an even number is needed"
        )
    theta = float(params.get("rope_theta") or 10_000.0)
    if kind == "longrope":
        return _longrope(config, params, theta, rotary_dim)
    numbers: dict[str, Any] = {}
    if kind != "default":
        numbers["factor"] = _number(params, "factor")
    if kind == "llama3":
        numbers |= {name: _number(params, name) for name in ("low_freq_factor", "high_freq_factor")}
    if kind in ("llama3", "yarn"):
        numbers["original_max_position_embeddings"] = int(_number(params, "original_max_position_embeddings"))
    if kind == "yarn":
        numbers["beta_fast"] = float(params.get("beta_fast") or 32.0)
        numbers["beta_slow"] = float(params.get("beta_slow") or 1.0)
        numbers["truncate"] = bool(params.get("truncate", True))
        numbers["attention_factor"] = _yarn_attention_factor(params, numbers["factor"])
    return RopeSpec(kind=kind, theta=theta, rotary_dim=rotary_dim, **numbers)


def window_of(config: Any, rope: RopeSpec | None) -> tuple[int, str]:
    """Tokens that the model was made for, and the reason where the config names more."""
    window: int = config.max_position_embeddings
    if rope is None:
        return window, ""
    if rope.kind == "yarn":
        return max(window, int(rope.original_max_position_embeddings * rope.factor)), ""
    original = rope.original_max_position_embeddings
    if rope.kind == "longrope" and original < window:
        reason = (
            f"more, up to {window}, would need longrope's long factors, which turn every token of a "
            "sequence anew when it outgrows the original window: that is not supported"
        )
        return original, reason
    return window, ""


def _longrope(config: Any, params: dict[str, Any], theta: float, rotary_dim: int) -> RopeSpec:
    original = int(_number(params, "original_max_position_embeddings"))
    divisors = params.get("short_factor")
    if not isinstance(divisors, list) or len(divisors) != rotary_dim // 2:
        raise ModelError(
            f"config.json is invalid: rope type 'longrope' needs a list 'short_factor' of {rotary_dim // 2} "
            f"numbers, found {divisors!r}"
        )
    factor = params.get("factor") or config.max_position_embeddings / original
    attention_factor = params.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeSpec(
        kind="longrope",
        theta=theta,
        rotary_dim=rotary_dim,
        original_max_position_embeddings=original,
        divisors=tuple(float(divisor) for divisor in divisors),
        attention_factor=float(attention_factor),
    )


def _yarn_attention_factor(params: dict[str, Any], factor: float) -> float:
    """Peng et al. 2023, section 3.4: 0.1 ln(factor) + 1; `mscale` weighs the logarithm (DeepSeek)."""
    given = params.get("attention_factor")
    if given is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, mscale_all_dim = params.get("mscale"), params.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def _number(params: dict[str, Any], name: str) -> float:
    value = params.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(
            f"config.json is invalid: rope type {params.get('rope_type')!r} needs a number {name!r}, "
            f"found {value!r}"
        )
    return float(value)
