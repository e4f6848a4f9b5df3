"""How fast a workload could run on a device whose rates are known: an upper bound, from the schedule alone.

A step reads all weights once and the keys and values of each of its sequences once, and writes those of its
new tokens; that takes bytes / bandwidth. Prefilled tokens take their products: 2 operations for each
parameter of the layers, 4 · heads · head_dim for each query-key pair and layer, 2 · hidden · vocabulary for
each sampled row. `seconds` adds the two up, as they do in an engine that does one after the other: with the
H100's nominal 3.35 TB/s and 798 TFLOP/s this gives nano-vllm's workload 28.6 thousand tokens/s (Qwen3-0.6B,
bfloat16), and with the H200's 4.8 TB/s and 790 TFLOP/s 40.3 thousand. `roofline_seconds` takes the greater of
the two in each step, with the decodes' products among them: what not even a perfect overlap could beat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.engine.schedule import StepLoad
from benchmarks.engine.shapes import ModelShape


@dataclass(frozen=True)
class Rates:
    """What a device reaches, as measured on it."""

    read_bytes_per_s: float
    matmul_flops_per_s: float


@dataclass(frozen=True)
class Ceiling:
    """The least time that a workload takes, in seconds."""

    seconds: float
    roofline_seconds: float
    weights_s: float
    kv_s: float
    prefill_s: float
    num_steps: int


def ceiling(
    shape: ModelShape, steps: Iterable[StepLoad], rates: Rates, *, weight_bytes: int = 2, kv_bytes: int = 2
) -> Ceiling:
    """weight_bytes, kv_bytes: of one element; kv_bytes 1 has its scales beside it."""
    weights = shape.read_params * weight_bytes
    per_token = shape.kv_bytes_per_token(kv_bytes)
    weights_s = kv_s = prefill_s = roofline_s = 0.0
    num_steps = 0
    for step in steps:
        num_steps += 1
        moved = (step.context_tokens + step.prefill_tokens + step.decode_tokens) * per_token
        step_weights_s = weights / rates.read_bytes_per_s
        step_kv_s = moved / rates.read_bytes_per_s
        prefill = prefill_flops(shape, step)
        weights_s += step_weights_s
        kv_s += step_kv_s
        prefill_s += prefill / rates.matmul_flops_per_s
        computed_s = (prefill + decode_flops(shape, step)) / rates.matmul_flops_per_s
        roofline_s += max(step_weights_s + step_kv_s, computed_s)
    return Ceiling(weights_s + kv_s + prefill_s, roofline_s, weights_s, kv_s, prefill_s, num_steps)


def prefill_flops(shape: ModelShape, step: StepLoad) -> float:
    """Of a step's prompt tokens, with the rows of the output that their last ones need."""
    linear = 2.0 * shape.body_params * step.prefill_tokens
    attention = 4.0 * shape.q_size * shape.num_layers * step.prefill_pairs
    rows = step.sampled_rows - step.decode_tokens
    return linear + attention + 2.0 * shape.hidden_size * shape.vocab_size * rows


def decode_flops(shape: ModelShape, step: StepLoad) -> float:
    """Of a step's decoded tokens, without attention, which takes bytes and not operations."""
    return 2.0 * shape.read_params * step.decode_tokens
