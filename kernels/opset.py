"""An op set: one implementation of every operation, chosen once and passed down as an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape
from kernels.linear import LinearWeight
from kernels.logprob import TopLogprobs
from kernels.mask import TokenMasks
from kernels.penalty import SeenTokens
from kernels.sample import SamplingTensors


@dataclass(frozen=True, slots=True)
class OpSet:
    """Implementations without checks; the functions of the same names in `kernels.<op>` check, then call."""

    name: str
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    silu_and_mul: Callable[[Tensor], Tensor]
    pack_linear: Callable[[Tensor, Tensor | None], LinearWeight]
    linear: Callable[[Tensor, LinearWeight], Tensor]
    store_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    plan_attention: Callable[[AttentionMetadata, AttentionShape], AttentionPlan]
    attention: Callable[[Tensor, Tensor, Tensor, AttentionPlan, Tensor], None]
    philox: Callable[[Tensor, Tensor], Tensor]
    sample: Callable[[Tensor, Tensor, SamplingTensors], Tensor]
    apply_bitmask: Callable[[Tensor, TokenMasks], None]
    apply_penalties: Callable[[Tensor, SeenTokens], None]
    top_logprobs: Callable[[Tensor, Tensor, int], TopLogprobs]


def load_op_set(name: str) -> OpSet:
    """The op set `cpu` or `reference`. Each call makes one of its own, with its own scratch memory."""
    if name == "cpu":
        from kernels import cpu

        return cpu.make_op_set()
    if name == "reference":
        from kernels import reference

        return reference.make_op_set()
    raise ValueError(f"no op set {name!r}: there are 'cpu' and 'reference'")
