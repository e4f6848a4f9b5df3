"""Tiny random models of every family, saved by transformers, and what transformers generates from them."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import nn

VOCAB_SIZE = 199
WINDOW = 160
SLIDING = 12
"""A sliding window that most prompts outgrow, and that no block ends with."""

_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
# Larger than the default 0.02, so that logits lie well apart and no near-tie decides a token.
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.3,
    **_NO_TOKENS,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": WINDOW,
    **_NO_TOKENS,
}
_BLOOM: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 48, "n_layer": 2, **_NO_TOKENS}
_FALCON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": WINDOW,
    **_NO_TOKENS,
}
_GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, **_SHAPE}
_NEOX = {name: value for name, value in _SHAPE.items() if name != "initializer_range"}
_LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "beta_fast": 4.0,
}
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.5, 2.0, 3.5],
    "long_factor": [2.0, 4.0, 8.0, 16.0],
}
_GEMMA3_ROPE: dict[str, Any] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
}

FAMILIES: dict[str, hf.PretrainedConfig] = {
    "llama": hf.LlamaConfig(tie_word_embeddings=False, **_GQA),
    "llama-tied-one-kv-head": hf.LlamaConfig(
        num_attention_heads=6, num_key_value_heads=1, tie_word_embeddings=True, **_SHAPE
    ),
    "llama-biases-no-gqa": hf.LlamaConfig(
        num_attention_heads=3, num_key_value_heads=3, attention_bias=True, mlp_bias=True, **_SHAPE
    ),
    "llama3-rope": hf.LlamaConfig(rope_parameters=_LLAMA3_ROPE, **_GQA),
    "llama-yarn": hf.LlamaConfig(rope_parameters=_YARN, hidden_act="gelu", **_GQA),
    "mistral": hf.MistralConfig(sliding_window=SLIDING, head_dim=20, **_GQA),
    "qwen2": hf.Qwen2Config(tie_word_embeddings=False, **_GQA),
    "qwen2-windows": hf.Qwen2Config(
        use_sliding_window=True, sliding_window=SLIDING, max_window_layers=1, **_GQA
    ),
    "qwen3": hf.Qwen3Config(head_dim=20, tie_word_embeddings=True, **_GQA),
    "gemma2": hf.Gemma2Config(
        head_dim=20,
        query_pre_attn_scalar=17,
        sliding_window=SLIDING,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=0.3,
        **_GQA,
    ),
    "gemma3": hf.Gemma3TextConfig(
        head_dim=20,
        query_pre_attn_scalar=30,
        sliding_window=SLIDING,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=_GEMMA3_ROPE,
        **{**_GQA, "num_hidden_layers": 3},
    ),
    "phi3": hf.Phi3Config(sliding_window=SLIDING, **_GQA),
    "phi3-longrope": hf.Phi3Config(
        num_attention_heads=3,
        rope_parameters=_LONGROPE,
        original_max_position_embeddings=100,
        **_SHAPE,
    ),
    "mixtral": hf.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=SLIDING, **_GQA),
    "qwen3-moe": hf.Qwen3MoeConfig(
        head_dim=20,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=36,
        mlp_only_layers=[1],
        **{**_GQA, "num_hidden_layers": 3},
    ),
    "qwen3-moe-renormalized": hf.Qwen3MoeConfig(
        head_dim=12,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=36,
        norm_topk_prob=True,
        **_GQA,
    ),
    "falcon-7b": hf.FalconConfig(**_FALCON),
    "falcon-40b": hf.FalconConfig(new_decoder_architecture=True, num_kv_heads=2, **_FALCON),
    "falcon-11b": hf.FalconConfig(
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        tie_word_embeddings=False,
        **_FALCON,
    ),
    "falcon-rw": hf.FalconConfig(alibi=True, bias=True, multi_query=False, parallel_attn=False, **_FALCON),
    "bloom": hf.BloomConfig(n_head=4, **_BLOOM),
    "bloom-six-heads": hf.BloomConfig(n_head=6, seq_length=WINDOW, **_BLOOM),
    "gpt-neox": hf.GPTNeoXConfig(
        num_attention_heads=3,
        rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25},
        **_NEOX,
    ),
    "gpt-neox-sequential": hf.GPTNeoXConfig(
        num_attention_heads=4,
        use_parallel_residual=False,
        attention_bias=False,
        rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5},
        **_NEOX,
    ),
    "gpt2": hf.GPT2Config(**_GPT2),
    "gpt2-layer-scales": hf.GPT2Config(
        scale_attn_by_inverse_layer_idx=True, n_inner=40, tie_word_embeddings=False, **_GPT2
    ),
    "gpt-bigcode": hf.GPTBigCodeConfig(**_GPT2),
    "gpt-bigcode-heads": hf.GPTBigCodeConfig(multi_query=False, **_GPT2),
    "starcoder2": hf.Starcoder2Config(sliding_window=SLIDING, **_GQA),
    "olmo2": hf.Olmo2Config(**_GQA),
    "granite": hf.GraniteConfig(
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.3,
        logits_scaling=0.5,
        **_GQA,
    ),
    "smollm3": hf.SmolLM3Config(no_rope_layers=[1, 0, 1], **{**_GQA, "num_hidden_layers": 3}),
}


def save_tiny_model(family: str, folder: Path) -> Path:
    """Saves a random model; every parameter is random, biases and norms too."""
    model = tiny_transformers_model(family)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def tiny_transformers_model(family: str) -> Any:
    """The model that `save_tiny_model` saves."""
    torch.manual_seed(len(family) + sum(family.encode()))
    config = type(FAMILIES[family])(**FAMILIES[family].to_dict())
    with warnings.catch_warnings():  # at the import of gpt_bigcode in transformers 5.17
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    scale = config.hidden_size**0.5 if "gemma" in family else getattr(config, "embedding_multiplier", 1.0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("bias"):
            parameter.normal_(0.0, 0.3)
        elif parameter is model.get_input_embeddings().weight and config.tie_word_embeddings:
            parameter.normal_(0.0, 0.1 / scale)  # or every token would be answered with itself
        elif parameter.dim() == 1:
            centre = 0.0 if "gemma" in family else 1.0  # Gemma multiplies with 1 + w
            parameter.uniform_(centre - 0.5, centre + 0.5)
        elif name.endswith("gate.weight"):
            parameter.normal_(0.0, 1.2)  # experts well apart
        else:
            parameter.normal_(0.0, 0.3)
    return model.eval()


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def load_transformers_model(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The folder's model as transformers runs it.

    Gemma's soft caps need eager attention. Falcon's eager attention adds alibi twice: once in the mask and
    once to the scores; its SDPA adds it once, as the model was trained.
    """
    falcon = hf.AutoConfig.from_pretrained(folder).model_type == "falcon"
    model = hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa" if falcon else "eager"
    )
    model.set_experts_implementation("eager")  # the other one is not for matrices this small
    return model


@torch.inference_mode()
def generate(folder: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """What transformers says: greedy, fp32, each prompt on its own."""
    model: Any = load_transformers_model(folder)
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
    config = hf.LlamaConfig(
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        **{**_SHAPE, "vocab_size": 468, "hidden_size": 32, "eos_token_id": [3, 77]},
    )
    torch.manual_seed(5)
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((shipped / "tokenizer.json").read_bytes())
    return folder
