"""Models by their published hyper-parameters: what config.json says, and what a step of one costs at least.

Sources: config.json of Qwen/Qwen3-0.6B, Qwen/Qwen3-8B, Qwen/Qwen3-30B-A3B, meta-llama/Llama-3.1-8B and
meta-llama/Llama-3.2-1B on the Hugging Face hub. No weights are fetched: engines are given dummy ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Of one element, in a precision of ours."""
_CACHE_BYTES = {**WEIGHT_BYTES, "fp8": 1}
SCALE_BYTES = 4
"""Of each token's head in a cache of 8 bits, see kernels/attention.py."""


def cache_bytes(precision: str, kv_cache_dtype: str = "auto") -> int:
    """Of one key's or value's element."""
    return _CACHE_BYTES[precision if kv_cache_dtype == "auto" else kv_cache_dtype]


@dataclass(frozen=True)
class ModelShape:
    """A decoder with gated MLPs, grouped-query attention and root mean square norms."""

    name: str
    model_type: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    tied: bool
    head_norm: bool = False
    """Whether queries and keys are normed by head, as in Qwen3."""

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def layer_params(self) -> int:
        """Of one layer's matrices; norms are left out, as they are a thousandth."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def body_params(self) -> int:
        """What every token is multiplied with."""
        return self.num_layers * self.layer_params

    @property
    def read_params(self) -> int:
        """What a step reads: the layers and the output matrix. Of the embedding it reads a few rows."""
        return self.body_params + self.vocab_size * self.hidden_size

    @property
    def num_params(self) -> int:
        """All there are."""
        return self.read_params + (0 if self.tied else self.vocab_size * self.hidden_size)

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Keys and values of one token in all layers; one byte an element has scales beside it."""
        head = self.head_dim * element_bytes + (SCALE_BYTES if element_bytes == 1 else 0)
        return self.num_layers * 2 * self.num_kv_heads * head

    def config(self) -> dict[str, Any]:
        """As config.json holds it. No end token: every output has the length that was asked for."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": 1e-6 if self.model_type == "qwen3" else 1e-5,
            "rope_theta": self.rope_theta,
            "attention_bias": False,
            "tie_word_embeddings": self.tied,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "torch_dtype": "bfloat16",
        }


QWEN3_06B = ModelShape(
    "qwen3-0.6b", "qwen3", "Qwen3ForCausalLM", 151936, 1024, 3072, 28, 16, 8, 128, 40960, 1e6, True, True
)
QWEN3_8B = ModelShape(
    "qwen3-8b", "qwen3", "Qwen3ForCausalLM", 151936, 4096, 12288, 36, 32, 8, 128, 40960, 1e6, False, True
)
LLAMA_31_8B = ModelShape(
    "llama-3.1-8b", "llama", "LlamaForCausalLM", 128256, 4096, 14336, 32, 32, 8, 128, 131072, 5e5, False
)
LLAMA_32_1B = ModelShape(
    "llama-3.2-1b", "llama", "LlamaForCausalLM", 128256, 2048, 8192, 16, 32, 8, 64, 131072, 5e5, True
)
QWEN3_06B_32K = replace(QWEN3_06B, name="qwen3-0.6b-32k", vocab_size=32000)
"""With the vocabulary of the comparison of peers on processors."""
TINY = ModelShape("tiny", "qwen3", "Qwen3ForCausalLM", 512, 64, 128, 2, 4, 2, 16, 512, 1e4, True, True)
TINY_LLAMA = replace(
    TINY, name="tiny-llama", model_type="llama", architecture="LlamaForCausalLM", head_norm=False
)

SHAPES = {
    shape.name: shape
    for shape in (QWEN3_06B, LLAMA_31_8B, QWEN3_8B, LLAMA_32_1B, QWEN3_06B_32K, TINY, TINY_LLAMA)
}


def write_folder(shape: ModelShape, folder: Path) -> Path:
    """A model folder without weights: config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n")
    return folder
