"""Configs that are read without transformers: the same specs, or transformers is asked."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from engine.errors import EngineError
from engine.models.families import spec_of
from engine.models.folder import eos_token_ids
from engine.models.plain_config import read_plain_config

SHIPPED = Path(__file__).parents[2] / "examples" / "models" / "tiny"
_SIZES = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
    "attention_dropout": 0.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "bos_token_id": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": json.loads((SHIPPED / "config.json").read_bytes()),
    "llama-2": {
        **_SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "pretraining_tp": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
    "llama-3.2": {
        **_SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": True,
        "head_dim": 16,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 1024,
            "rope_type": "llama3",
        },
        "eos_token_id": [2, 3, 5],
        "tie_word_embeddings": True,
    },
    "mistral": {
        **_SIZES,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        **_SIZES,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "max_window_layers": 2,
        "sliding_window": 512,
        "use_sliding_window": False,
        "eos_token_id": 999,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        **_SIZES,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 32,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "max_window_layers": 2,
        "sliding_window": None,
        "use_sliding_window": False,
        "eos_token_id": 999,
        "tie_word_embeddings": True,
    },
    "saved by transformers 5": {
        **{name: value for name, value in _SIZES.items() if name != "torch_dtype"},
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": True,
        "head_dim": 32,
        "dtype": "float32",
        "layer_types": ["full_attention"] * 3,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "max_window_layers": 2,
        "sliding_window": None,
        "use_sliding_window": False,
        "pad_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    },
}


def plain(config: dict[str, Any]) -> Any:
    return read_plain_config(json.dumps(config).encode())


def understood(config: dict[str, Any], folder: Path) -> Any:
    """What transformers makes of it; None if nothing."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        return hf.AutoConfig.from_pretrained(folder)
    except Exception:
        return None


def outcome(config: Any, folder: Path) -> Any:
    try:
        return spec_of(config), eos_token_ids(folder, config)
    except EngineError as error:
        return str(error)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_spec_is_the_one_that_transformers_gives(name: str, tmp_path: Path) -> None:
    config = plain(CONFIGS[name])
    assert config is not None
    expected = understood(CONFIGS[name], tmp_path)
    assert outcome(config, tmp_path) == outcome(expected, tmp_path)
    assert not isinstance(outcome(config, tmp_path), str)


def variants(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config without each of its fields, with other values in each, and with fields that it lacks."""
    values: list[Any] = [None, 0, -1, 1, 3, 2.5, True, False, "x", [], [5], {}, {"rope_type": "default"}]
    values += [
        ["sliding_attention"] * 3,
        {"rope_type": "linear", "factor": 2.0},
        {"type": "linear", "factor": 2},
    ]
    more = {
        "head_dim": 24,
        "is_causal": False,
        "quantization_config": {"quant_method": "gptq", "bits": 4},
        "attn_logit_softcapping": 3.0,
        "use_bidirectional_attention": True,
        "partial_rotary_factor": 0.5,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
        "rope_scaling": {"rope_type": "default", "rope_theta": 8.0},
        "use_sliding_window": True,
        "sliding_window": 256,
        "original_max_position_embeddings": 77,
        "text_config": {"vocab_size": 5},
    }
    return [
        *({key: value for key, value in config.items() if key != left_out} for left_out in config),
        *({**config, key: value} for key in config for value in values),
        *({**config, key: value} for key, value in more.items()),
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_whatever_a_config_says_the_spec_is_transformers_or_it_is_asked(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # transformers has a word to say of many of them
    num_plain = 0
    for variant in variants(CONFIGS[name]):
        config = plain(variant)
        if config is not None:
            num_plain += 1
            expected = understood(variant, tmp_path)
            assert expected is not None, f"transformers refuses {variant}"
            assert outcome(config, tmp_path) == outcome(expected, tmp_path), variant
    assert num_plain > 30, "the test compares too little"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"model_type": "llama"}'])
def test_what_is_no_config_is_left_to_transformers(content: bytes) -> None:
    assert read_plain_config(content) is None


_START = """
import sys
from engine.config import EngineConfig
from engine.engine import Engine
Engine(EngineConfig(model=sys.argv[1], num_blocks=64, num_threads=1))
print([name for name in ("transformers", "torch._dynamo") if name in sys.modules])
"""


def test_a_plain_model_starts_without_transformers_and_compilers() -> None:
    """Recording a step watches torch by a mode that could import its compiler: a second, and 150 MB."""
    out = subprocess.run(
        [sys.executable, "-c", _START, str(SHIPPED)], check=True, capture_output=True, text=True
    )
    assert out.stdout == "[]\n"
