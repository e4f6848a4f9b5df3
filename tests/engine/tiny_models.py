"""Tiny random models of every family, saved by transformers, and what transformers generates from them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 199
WINDOW = 160

# Larger than the default 0.02, so that logits lie well apart and no near-tie decides a token.
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

FAMILIES: dict[str, tuple[type[Any], PretrainedConfig]] = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, **_SHAPE),
    ),
    "llama-tied-one-kv-head": (
        LlamaForCausalLM,
        LlamaConfig(num_attention_heads=6, num_key_value_heads=1, tie_word_embeddings=True, **_SHAPE),
    ),
    "llama-biases-no-gqa": (
        LlamaForCausalLM,
        LlamaConfig(
            num_attention_heads=3, num_key_value_heads=3, attention_bias=True, mlp_bias=True, **_SHAPE
        ),
    ),
    "llama3-rope": (
        LlamaForCausalLM,
        LlamaConfig(num_attention_heads=4, num_key_value_heads=2, rope_parameters=_LLAMA3_ROPE, **_SHAPE),
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, **_SHAPE),
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(
            num_attention_heads=4, num_key_value_heads=2, head_dim=20, tie_word_embeddings=True, **_SHAPE
        ),
    ),
}


def save_tiny_model(family: str, folder: Path) -> Path:
    """Saves a random model; every parameter is random, biases and norms too."""
    model_class, config = FAMILIES[family]
    torch.manual_seed(sum(family.encode()))
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return folder


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@torch.inference_mode()
def generate(folder: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """What transformers says: greedy, fp32, each prompt on its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outputs: list[list[int]] = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens)
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


def save_wordy_model(folder: Path) -> Path:
    """A tiny random model with the tokenizer and the vocabulary of the shipped one, and end tokens."""
    shipped = Path(__file__).parents[2] / "examples" / "models" / "tiny"
    config = LlamaConfig(
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        **{**_SHAPE, "vocab_size": 468, "hidden_size": 32, "eos_token_id": [3, 77]},
    )
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((shipped / "tokenizer.json").read_bytes())
    return folder
