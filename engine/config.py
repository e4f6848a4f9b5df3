"""Engine settings: a frozen struct, given once; whatever is derived from it is a new object."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
KVCacheDtype = Literal["auto", "bf16", "fp8", "int8"]
LoadFormat = Literal["safetensors", "dummy"]
OpSetName = Literal["auto", "cpu", "reference", "triton"]
DeviceName = Literal["auto", "cpu", "cuda"]


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one engine runs one model. Sizes of 0 are derived at load from the model and the machine."""

    model: str
    """A local folder with config.json and safetensors, or a hub id."""
    load_format: LoadFormat = "safetensors"
    """`dummy`: random weights in the shapes that config.json names, for benchmarks."""
    precision: Precision = "auto"
    """Type of weights, activations and KV cache. `auto`: bf16 on a GPU, fp32 on a processor, which computes
    in float32 whatever the weights are stored as. `int8`: weights in 8 bits, with a scale for each output,
    and activations with one for each token; on a processor."""
    kv_cache_dtype: KVCacheDtype = "auto"
    """`fp8` (on a GPU) and `int8` (on a processor): keys and values in half the bytes of bf16, with a scale
    for each token's head. `auto`: int8 beside weights of int8, else as the weights. `bf16`: on a processor,
    beside any weights."""
    ops: OpSetName = "auto"
    """Which kernels run: `triton` on an NVIDIA GPU, `cpu` on the processor, `reference` on either, slowly, in
    plain torch. `auto`: `triton` where there is a GPU that torch and Triton can use, else `cpu`."""
    device: DeviceName = "auto"
    """`cuda`: refuse to start where the GPU cannot be used. `auto`: where the op set belongs."""
    max_num_seqs: int = 0
    """Sequences that run at once; 0: 256 on a GPU, 64 on a processor."""
    max_num_batched_tokens: int = 0
    """Token budget of one step, shared by decodes and prefill chunks; at least max_num_seqs. 0: 8192 on a
    GPU, 1024 on a processor, or max_num_seqs where that is more."""
    max_model_len: int = 0
    """Tokens of prompt and output together; 0: the model's window."""
    block_size: int = 16
    """Tokens per KV cache block."""
    num_blocks: int = 0
    """KV cache blocks; 0: enough for max_num_seqs sequences of the window, within kv_cache_bytes."""
    kv_cache_bytes: int = 0
    """Upper bound of the KV cache when num_blocks is 0. 0: 2 GiB on a processor; on a GPU, what
    gpu_memory_utilization leaves beside the weights and the greatest step."""
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """How much of a GPU's memory may be used in all, by this process and others."""
    enforce_eager: bool = False
    """Record no decode steps (on a GPU, CUDA graphs): slower, and a little less memory."""
    prefix_cache: bool = True
    """Keep the blocks of finished sequences and reuse them for prompts that begin alike."""
    overlap: Annotated[int, Meta(ge=0, le=1)] | None = None
    """Steps scheduled before the results of the one before are known: 1 hides the host's work behind a GPU's;
    on a processor the two would only share its cores. None: 1 on a GPU, 0 on a processor."""
    num_threads: int = 0
    """Compute threads; 0: OMP_NUM_THREADS if set, else the cores that this process may use, or fewer for a
    small model."""
