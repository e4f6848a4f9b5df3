"""A config.json that says everything itself, read without transformers, whose import takes half of a start.

Only what needs no knowledge of transformers' is read here: every number is there, every field is known, none
asks for anything out of the ordinary. For everything else transformers is asked, and says in its own words
what is wrong with a config.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

_Size = Annotated[int, Meta(gt=0)]
_Rate = Annotated[float, Meta(ge=0, le=1)]
_TYPES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


class _Rope(Struct, forbid_unknown_fields=True, tag_field="rope_type", tag="default"):
    rope_theta: float | UnsetType = UNSET


class _Llama3Rope(Struct, forbid_unknown_fields=True, tag_field="rope_type", tag="llama3", kw_only=True):
    rope_theta: float | UnsetType = UNSET
    factor: Annotated[float, Meta(ge=1)]
    low_freq_factor: Annotated[float, Meta(gt=0)]
    high_freq_factor: Annotated[float, Meta(gt=0)]
    original_max_position_embeddings: _Size


class PlainConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields of a config of `_TYPES` under transformers' names; as `engine.models.families` reads it."""

    architectures: tuple[str]
    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size
    max_position_embeddings: _Size
    hidden_act: str
    rms_norm_eps: float | int
    tie_word_embeddings: bool
    eos_token_id: int | list[int] | None
    head_dim: _Size | UnsetType = UNSET
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float | UnsetType = UNSET
    rope_scaling: _Rope | _Llama3Rope | None = None
    rope_parameters: Any = None
    sliding_window: _Size | UnsetType | None = UNSET
    use_sliding_window: bool = False
    layer_types: list[str] | None = None
    # What says nothing of how the model computes:
    attention_dropout: _Rate = 0.0
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    initializer_range: float | int = 0.02
    max_window_layers: int = 0
    pretraining_tp: int = 1
    torch_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    transformers_version: str = ""
    use_cache: bool = True


def read_plain_config(content: bytes) -> PlainConfig | None:
    """The config that a config.json's bytes hold; None where transformers has to be asked."""
    try:
        config = msgspec.json.decode(content, type=PlainConfig)
        rope = msgspec.convert(config.rope_parameters, _Rope | _Llama3Rope | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if not _is_plain(config):
        return None
    rope = config.rope_scaling or rope or _Rope()
    if rope.rope_theta is UNSET:
        rope.rope_theta = config.rope_theta
    if rope.rope_theta is UNSET or rope.rope_theta <= 0:
        return None
    config.rope_parameters = msgspec.to_builtins(rope)
    if config.head_dim is UNSET:
        config.head_dim = config.hidden_size // config.num_attention_heads
    if config.model_type != "mistral":
        config.sliding_window = None
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    return config


def _is_plain(config: PlainConfig) -> bool:
    """Whether nothing is asked for that transformers would have to judge, or to fill in by its defaults."""
    kind, all_full = config.model_type, ["full_attention"] * config.num_hidden_layers
    return (
        config.architectures == (_TYPES[kind],)
        and isinstance(config.rms_norm_eps, float)  # transformers takes no whole number for either
        and isinstance(config.initializer_range, float)
        and 0 <= config.initializer_range <= 1
        and config.hidden_size % config.num_attention_heads == 0
        and (config.layer_types is None or (kind[:4] == "qwen" and config.layer_types == all_full))
        and not config.use_sliding_window
        and (config.head_dim is not UNSET or kind != "qwen3")
        and (config.sliding_window is not UNSET or kind != "mistral")
        and (config.sliding_window in (None, UNSET) or kind != "llama")
        and not (config.rope_scaling and config.rope_parameters)
    )
