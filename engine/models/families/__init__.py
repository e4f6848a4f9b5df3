"""The families: how a Hugging Face config becomes a spec, and which tensors its checkpoints hold.

Sizes come from the config, which AutoConfig reads. To add a family that the decoder's seams already cover,
add a row to `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct

from engine.errors import ModelError, NoSpec, UnsupportedModel
from engine.models.families.bloom import bloom_spec
from engine.models.families.falcon import falcon_spec
from engine.models.families.fields import refuse
from engine.models.families.gpt2 import gpt2_spec
from engine.models.families.llama import POST_NORM, SANDWICH, Differences, llama_spec
from engine.models.families.neox import neox_spec
from engine.models.spec import DecoderSpec


class Family(Struct, frozen=True, kw_only=True):
    """One architecture."""

    model_type: str
    """The config's own name for it: decides how transformers reads the fields."""
    build: Callable[[Any, str], DecoderSpec]
    """From a config and the architecture's name."""
    models: str
    """Those that people know, for the documentation."""
    variants: str = ""
    """What configs may ask for beside transformers' defaults, for the documentation."""


def _like_llama(model_type: str, models: str, variants: str = "", **differences: Any) -> Family:
    build = partial(llama_spec, Differences(**differences))
    return Family(model_type=model_type, build=build, models=models, variants=variants)


_GEMMA: dict[str, Any] = {
    "norms": SANDWICH,
    "norm_offset": 1.0,
    "activation": "hidden_activation",
    "windows": "layer_types",
    "query_scalar": True,
    "scaled_embedding": True,
    "qkv_bias": "attention_bias",
    "out_bias": "attention_bias",
}
_ATTENTION_BIAS = {"qkv_bias": "attention_bias", "out_bias": "attention_bias"}

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": _like_llama(
        "llama", "Llama 2, 3, 3.1, 3.2", variants="biases", **_ATTENTION_BIAS, mlp_bias="mlp_bias"
    ),
    "MistralForCausalLM": _like_llama("mistral", "Mistral 7B", windows="all"),
    "Qwen2ForCausalLM": _like_llama(
        "qwen2",
        "Qwen2, Qwen2.5",
        variants="sliding windows from a layer on",
        qkv_bias="always",
        windows="layer_types",
    ),
    "Qwen3ForCausalLM": _like_llama(
        "qwen3",
        "Qwen3",
        variants="sliding windows, biases",
        **_ATTENTION_BIAS,
        qk_norm="head",
        windows="layer_types",
    ),
    "Gemma2ForCausalLM": _like_llama("gemma2", "Gemma 2", **_GEMMA, soft_caps=True),
    "Gemma3ForCausalLM": _like_llama("gemma3_text", "Gemma 3 1B", **_GEMMA, qk_norm="head"),
    "Phi3ForCausalLM": _like_llama(
        "phi3",
        "Phi-3, Phi-4, Phi-4-mini",
        variants="sliding window, partial rotary",
        fused=True,
        partial_rotary=True,
        windows="all",
    ),
    "MixtralForCausalLM": _like_llama(
        "mixtral",
        "Mixtral",
        variants="sliding window",
        mlp="moe",
        experts=("block_sparse_moe", "w1", "w3", "w2"),
        windows="all",
    ),
    "Qwen3MoeForCausalLM": _like_llama(
        "qwen3_moe",
        "Qwen3 30B-A3B, 235B-A22B",
        variants="dense layers between",
        **_ATTENTION_BIAS,
        qk_norm="head",
        mlp="moe",
        experts=("mlp", "gate_proj", "up_proj", "down_proj"),
        windows="all",
    ),
    "FalconForCausalLM": Family(
        model_type="falcon",
        build=falcon_spec,
        models="Falcon 7B, 40B, 180B, 11B, RW",
        variants="new decoder (grouped KV heads, one norm or two); sequential; alibi; biases",
    ),
    "BloomForCausalLM": Family(model_type="bloom", build=bloom_spec, models="BLOOM"),
    "GPTNeoXForCausalLM": Family(
        model_type="gpt_neox",
        build=neox_spec,
        models="GPT-NeoX, Pythia",
        variants="sequential blocks, no biases",
    ),
    "GPT2LMHeadModel": Family(model_type="gpt2", build=gpt2_spec, models="GPT-2", variants="scales by layer"),
    "GPTBigCodeForCausalLM": Family(
        model_type="gpt_bigcode",
        build=gpt2_spec,
        models="StarCoder, SantaCoder",
        variants="a KV head per head",
    ),
    "Starcoder2ForCausalLM": _like_llama(
        "starcoder2",
        "StarCoder2",
        variants="sliding window",
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        norm="layer",
        norm_eps="norm_epsilon",
        mlp="plain",
        windows="all",
    ),
    "Olmo2ForCausalLM": _like_llama(
        "olmo2", "OLMo 2", **_ATTENTION_BIAS, qk_norm="projection", norms=POST_NORM
    ),
    "GraniteForCausalLM": _like_llama(
        "granite",
        "Granite 3",
        variants="biases, multipliers of embedding, residual, scores and logits",
        **_ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        multipliers=True,
    ),
    "SmolLM3ForCausalLM": _like_llama(
        "smollm3",
        "SmolLM3",
        variants="sliding windows",
        **_ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        windows="layer_types",
    ),
}
"""By the name in the config's `architectures`."""


def spec_of(config: Any) -> DecoderSpec:
    """The spec of a transformers config.

    Raises NoSpec for an architecture that is none of these, UnsupportedModel for a variant of one that the
    decoder does not do, ModelError for a config without a field.
    """
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    if config.model_type != family.model_type:  # its fields may have other names: nothing else is looked at
        raise UnsupportedModel(
            f"{architecture} with model_type {config.model_type!r} (supported: {family.model_type!r}) "
            "is not supported"
        )
    quantization = getattr(config, "quantization_config", None)
    refuse(
        config,
        **{
            "attention that is not causal (is_causal)": getattr(config, "is_causal", True) is False,
            "quantized weights (quantization_config)": quantization is not None,
        },
    )
    try:
        return family.build(config, architecture)
    except AttributeError as error:
        raise ModelError(f"config.json is invalid: {error}") from error


def _architecture(config: Any) -> str:
    """The first architecture that there is a family for; if the config names none, its model type's."""
    named: list[str] = list(config.architectures or [])
    for name in named:
        if name in FAMILIES:
            return name
    if not named:
        for name, family in FAMILIES.items():
            if family.model_type == config.model_type:
                return name
    what = ", ".join(named) or f"none (model_type {config.model_type!r})"
    raise NoSpec(f"architecture {what} is not supported; supported are {', '.join(FAMILIES)}")
