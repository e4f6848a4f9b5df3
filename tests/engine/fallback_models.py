"""Tiny random models of architectures that have no spec, by transformers' own classes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

VOCAB_SIZE = 199
WINDOW = 160
SLIDING_WINDOW = 24

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": WINDOW,
    "sliding_window": SLIDING_WINDOW,
    # Larger than the default 0.02, so that logits lie well apart and no near-tie decides a token.
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_positions": WINDOW,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "dff": 96,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "rotary_dim": 8,
}
"""Each config takes those that it has a field for."""
_OWN: dict[str, dict[str, Any]] = {
    "CwmForCausalLM": {"bos_token_id": 0},
    "GPTNeoForCausalLM": {
        "num_layers": 2,
        "num_heads": 4,
        "window_size": SLIDING_WINDOW,
        "attention_types": [[["global", "local"], 1]],
    },
    "MptForCausalLM": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": WINDOW},
    "XGLMForCausalLM": {"d_model": 64, "num_layers": 2, "attention_heads": 4},
    # Their defaults are 1: nothing would be seen of them.
    "CohereForCausalLM": {"logit_scale": 0.0625},
    "Cohere2ForCausalLM": {"logit_scale": 0.0625},
    "GraniteForCausalLM": {"logits_scaling": 3.0, "attention_multiplier": 0.4},
    "GraniteMoeForCausalLM": {"logits_scaling": 3.0, "attention_multiplier": 0.4},
    "Gemma2ForCausalLM": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
}


def tiny_config(architecture: str, **settings: Any) -> PretrainedConfig:
    """Its class by the model's, tiny sizes, and `settings` on top."""
    model_class = getattr(transformers, architecture)
    config_class = model_class.config_class
    assert config_class in MODEL_FOR_CAUSAL_LM_MAPPING
    defaults = config_class()
    fields = {
        name: value
        for name, value in _SIZES.items()
        if hasattr(defaults, name) and not isinstance(getattr(config_class, name, None), property)
    }
    fields |= _OWN.get(architecture, {}) | settings
    return config_class(architectures=[architecture], **copy.deepcopy(fields))


def save_fallback_model(architecture: str, folder: Path, **settings: Any) -> Path:
    """Saves a random model; every parameter is random, biases and norms too."""
    config = tiny_config(architecture, **settings)
    torch.manual_seed(sum(architecture.encode()))
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return folder
