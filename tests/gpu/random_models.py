"""Random models of several families at a given scale, saved by transformers, and what it says of them.

Their parameters are rounded to bfloat16, so that one checkpoint serves every precision and the reference in
float32 has the same weights as a run in bfloat16.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.gpu.device import DEVICE, WINDOW, Scale

_SPREAD = 1.0
"""Matrices have a deviation of this over √hidden: with more, softmaxes sharpen and bfloat16's rounding grows
to a tenth of what logits lie apart; with 1 it is about a thirtieth (transformers' own, greatest error)."""


def _shape(scale: Scale, heads: bool = True) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "vocab_size": scale.vocab_size,
        "hidden_size": scale.hidden_size,
        "intermediate_size": 2 * scale.hidden_size,
        "num_hidden_layers": scale.num_layers,
        "max_position_embeddings": WINDOW,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if heads:
        shape |= {"num_attention_heads": scale.num_heads, "num_key_value_heads": max(1, scale.num_heads // 4)}
    return shape


def _gpt2(scale: Scale) -> hf.PretrainedConfig:
    return hf.GPT2Config(
        vocab_size=scale.vocab_size,
        n_embd=64 * scale.num_heads,
        n_layer=scale.num_layers,
        n_head=scale.num_heads,
        n_positions=WINDOW,
        bos_token_id=None,
        eos_token_id=None,
    )


def _bloom(scale: Scale) -> hf.PretrainedConfig:
    return hf.BloomConfig(
        vocab_size=scale.vocab_size,
        hidden_size=64 * scale.num_heads,
        n_layer=scale.num_layers,
        n_head=scale.num_heads,
        seq_length=WINDOW,
        bos_token_id=None,
        eos_token_id=None,
    )


FAMILIES: dict[str, Callable[[Scale], hf.PretrainedConfig]] = {
    "llama": lambda s: hf.LlamaConfig(head_dim=64, tie_word_embeddings=False, **_shape(s)),
    "qwen3": lambda s: hf.Qwen3Config(head_dim=128, tie_word_embeddings=True, **_shape(s)),
    "mistral": lambda s: hf.MistralConfig(head_dim=64, sliding_window=24, **_shape(s)),
    "gemma2": lambda s: hf.Gemma2Config(
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=24,
        attn_logit_softcapping=20.0,
        final_logit_softcapping=30.0,
        **_shape(s),
    ),
    "qwen3-moe": lambda s: hf.Qwen3MoeConfig(
        head_dim=64,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=s.hidden_size // 2,
        norm_topk_prob=True,
        **_shape(s),
    ),
    "phi3": lambda s: hf.Phi3Config(**_shape(s)),
    "gpt2": _gpt2,
    "bloom": _bloom,
}


@torch.no_grad()
def save_model(family: str, scale: Scale, folder: Path) -> Path:
    """Every parameter random, biases and norms too."""
    torch.manual_seed(sum(family.encode()))
    config = FAMILIES[family](scale)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    gemma = "gemma" in family
    for name, parameter in model.named_parameters():
        deviation = _SPREAD / config.hidden_size**0.5
        if parameter.dim() == 1 and name.endswith("bias"):
            parameter.normal_(0.0, 0.1)
        elif parameter.dim() == 1:
            parameter.uniform_(-0.5, 0.5).add_(0.0 if gemma else 1.0)  # Gemma multiplies with 1 + w
        elif parameter is model.get_input_embeddings().weight:
            parameter.normal_(0.0, deviation / (config.hidden_size**0.5 if gemma else 1.0))
        else:
            parameter.normal_(0.0, deviation)
        parameter.copy_(parameter.bfloat16())
    model.save_pretrained(folder)
    return folder


def load_reference(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model with its plainest attention, which knows every feature."""
    model: Any = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.to(DEVICE).eval()


@torch.inference_mode()
def reference_logits(model: Any, prompt: list[int], output: list[int]) -> Tensor:
    """[outputs, V] float32: the logits that each output token was to be chosen from, given those before."""
    ids = torch.tensor([prompt + output[:-1]], device=DEVICE)
    return model(ids).logits[0, len(prompt) - 1 :].float()


def random_prompts(scale: Scale, seed: int = 0) -> list[list[int]]:
    """Of 1 to the scale's longest prompt, one of each end among them."""
    rng = random.Random(seed)
    lengths = [1, scale.longest_prompt]
    lengths += [rng.randint(1, scale.longest_prompt) for _ in range(scale.num_prompts - 2)]
    return [[rng.randrange(scale.vocab_size) for _ in range(length)] for length in lengths]
