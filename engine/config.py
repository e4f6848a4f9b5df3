"""Engine settings: a frozen struct, given once; whatever is derived from it is a new object."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Precision = Literal["fp32", "bf16", "fp16"]
"""Numeric classes that the engine runs in: the type of weights, activations and KV cache."""

LoadFormat = Literal["safetensors", "dummy"]

OpSetName = Literal["cpu", "reference"]


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one engine runs one model. Sizes of 0 are derived at load from the model and the machine."""

    model: str
    """A local folder with config.json and safetensors, or a hub id."""
    load_format: LoadFormat = "safetensors"
    """`dummy`: random weights in the shapes that config.json names, for benchmarks."""
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
    prefix_cache: bool = True
    """Keep the blocks of finished sequences and reuse them for prompts that begin alike."""
    overlap: Annotated[int, Meta(ge=0, le=1)] = 0
    """Steps scheduled before the results of the one before are known: 1 hides the host's work behind a GPU's;
    on a processor the two would only share its cores."""
    num_threads: int = 0
    """Compute threads; 0: OMP_NUM_THREADS if set, else the cores that this process may use, or fewer for a
    small model."""
