"""Engine settings: a frozen struct, given once; whatever is derived from it is a new object."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Precision = Literal["fp32"]
"""Numeric classes that the engine runs in."""

OpSetName = Literal["cpu", "reference"]


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one engine runs one model. Sizes of 0 are derived at load from the model and the machine."""

    model: str
    """A local folder with config.json and safetensors, or a hub id."""
    precision: Precision = "fp32"
    ops: OpSetName = "cpu"
    max_num_seqs: int = 64
    """Sequences that run at once."""
    max_num_batched_tokens: int = 1024
    """Token budget of one step, shared by decodes and prefill chunks; at least max_num_seqs."""
    max_model_len: int = 0
    """Tokens of prompt and output together; 0: the model's window."""
    block_size: int = 16
    """Tokens per KV cache block."""
    num_blocks: int = 0
    """KV cache blocks; 0: enough for max_num_seqs sequences of the window, within kv_cache_bytes."""
    kv_cache_bytes: int = 2 * 1024**3
    """Upper bound of the KV cache when num_blocks is 0."""
    num_threads: int = 0
    """Compute threads; 0: OMP_NUM_THREADS if set, else the cores that this process may use, or fewer for a
    small model."""
