"""What a config says of a model that runs by the transformers fallback, before anything is loaded."""

from __future__ import annotations

import copy
import logging
from typing import Any, Final

import torch
from msgspec import Struct

from engine.errors import ModelError, UnsupportedModel
from engine.models.fallback_attention import AttentionRefused, register
from engine.models.fallback_probe import discover

log = logging.getLogger(__name__)

CACHED_LAYERS: Final = frozenset({"full_attention", "sliding_attention", "attention"})
"""Kinds of layers that keep all there is to keep in the KV cache."""
OTHER_INPUTS: Final = ("vision_config", "audio_config", "speech_config", "encoder")
STATES: Final = ("layers_block_type", "block_types", "mamba_d_state", "ssm_cfg", "linear_num_key_heads")
"""Fields of models some of whose layers keep a state instead of keys and values."""


class FallbackSizes(Struct, frozen=True, kw_only=True):
    """What the engine has to know of a model before it loads it; named as in `DecoderSpec`."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    """The window, tokens: where positions are stretched for longer texts, the one before stretching."""
    num_parameters: int
    window_reason: str = ""


def fallback_class(config: Any) -> Any:
    """The class in which transformers would load the config. Raises UnsupportedModel for one that the
    fallback cannot run, as far as the config tells."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    named: list[str] = list(config.architectures or [])
    what = ", ".join(named) or f"none (model_type {config.model_type!r})"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f"architecture {what} is not supported: it is no causal language model")
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    classes: tuple[Any, ...] = tuple(found) if isinstance(found, list | tuple) else (found,)
    model_class = next((c for c in classes if c.__name__ in named), None)
    if model_class is None:
        loaded = " or ".join(c.__name__ for c in classes)
        raise UnsupportedModel(
            f"architecture {what} is not supported: transformers would load it as {loaded}"
        )
    why = _refusal(config) or _class_refusal(model_class)
    if why is not None:
        raise UnsupportedModel(f"architecture {what} is not supported: it {why}")
    return model_class


def _class_refusal(model_class: Any) -> str | None:
    if getattr(model_class, "_is_stateful", False):
        return "keeps a recurrent state, which paged blocks cannot hold"
    if not getattr(model_class, "_supports_attention_backend", False):
        return "has no spec, and in transformers it does not let another attention be put in its place"
    return None


def _refusal(config: Any) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder model"
    if any(getattr(config, name, None) is not None for name in OTHER_INPUTS):
        return "takes pictures or sound besides text"
    if config.get_text_config() is not config:
        return "wraps a text model in another one"
    if getattr(config, "quantization_config", None) is not None:
        return "has quantized weights (quantization_config)"
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - CACHED_LAYERS)
    if kinds:
        return f"has layers of type {', '.join(kinds)}, whose state paged blocks cannot hold"
    if getattr(config, "kv_lora_rank", None):
        return "compresses its keys and values (kv_lora_rank), which paged blocks are not made for"
    for name in STATES:
        if getattr(config, name, None):
            return f"has layers that keep a state ({name}), which paged blocks cannot hold"
    if getattr(config, "attention_chunk_size", None):
        return "attends within fixed chunks (attention_chunk_size)"
    return None


def fallback_sizes(config: Any) -> FallbackSizes:
    """Sizes by the config and by a model without memory, whose layers are asked how they attend.

    Raises UnsupportedModel, and ModelError for a config that its class cannot be made of.
    """
    model_class = fallback_class(config)
    window = _window(config, model_class.__name__)
    register()
    try:
        with torch.device("meta"):
            model = model_class._from_config(
                copy.deepcopy(config),
                attn_implementation="eager",
                dtype=torch.bfloat16,  # without memory, experts know no other type
            )
    except Exception as error:  # its own checks of its config: many types
        raise ModelError(f"{model_class.__name__} cannot be made of this config: {error!r}") from error
    num_layers: int = config.num_hidden_layers
    num_kv_heads, head_dim = _head_sizes(config, model, num_layers)
    return FallbackSizes(
        architecture=model_class.__name__,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=window,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _head_sizes(config: Any, model: Any, num_layers: int) -> tuple[int, int]:
    """KV heads and their width, as the layers of a model without memory have them, or else as configs
    usually name them."""
    architecture = type(model).__name__
    try:
        shape = discover(model, num_layers).shapes[0]
        return shape.num_kv_heads, shape.head_dim
    except AttentionRefused as error:
        raise UnsupportedModel(f"architecture {architecture} is not supported: it {error}") from error
    except UnsupportedModel:
        raise
    except Exception as error:  # an operation that looks at values
        log.debug("%s does not run without memory: %r", architecture, error)
    try:
        num_heads: int = config.num_attention_heads
        num_kv_heads: int = getattr(config, "num_key_value_heads", None) or num_heads
        return num_kv_heads, getattr(config, "head_dim", None) or config.hidden_size // num_heads
    except Exception as error:  # configs of layers that differ raise their own
        raise UnsupportedModel(
            f"architecture {architecture} is not supported: its config names no heads that all layers have"
        ) from error


def _window(config: Any, architecture: str) -> int:
    window = getattr(config, "max_position_embeddings", None)
    if not isinstance(window, int) or window < 1:
        raise UnsupportedModel(
            f"architecture {architecture} is not supported: its config names no window "
            "(max_position_embeddings)"
        )
    for rope in _ropes(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") == "longrope":
            # Beyond it all positions turn by other angles, those already in the cache too.
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            window = min(window, original or window)
    return window


def _ropes(rope: dict[str, Any]) -> list[dict[str, Any]]:
    """One set of rope parameters, or one per kind of layer."""
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]
