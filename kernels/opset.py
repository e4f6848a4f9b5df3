"""An op set: one implementation of every operation, chosen once and passed down as an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.activation import Activation
from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape, LayerCache
from kernels.elements import plain_add, plain_copy, plain_scale, plain_take
from kernels.linear import LinearWeight
from kernels.logprob import TopLogprobs
from kernels.mask import TokenMasks
from kernels.moe import ExpertWeights
from kernels.penalty import SeenTokens
from kernels.qkv import HeadNorm, Turn
from kernels.sample import SamplingTensors


class Replay(Protocol):
    """See `Recorded`."""

    def __call__(self, rows: int, seconds: dict[str, float] | None = None) -> Tensor:
        """Runs the same operations on the first `rows` rows of what then lies where the recorded tensors
        were. Returns what the function would, in the same memory each time. Where a dict is given, the
        seconds of each operation are added to it by the operation's name."""
        ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was run once, and can be run again if there is a way to replay it."""

    result: Tensor
    """What it returned."""
    replay: Replay | None
    reason: str = ""
    """Why it cannot be replayed."""


@dataclass(frozen=True, slots=True)
class OpSet:
    """Implementations without checks; the functions of the same names in `kernels.<op>` check, then call."""

    name: str
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    add_layer_norm: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    act_and_mul: Callable[[Tensor, Activation], Tensor]
    activate: Callable[[Tensor, Activation], Tensor]
    pack_linear: Callable[[Tensor, Tensor | None], LinearWeight]
    linear: Callable[[Tensor, LinearWeight], Tensor]
    pack_experts: Callable[[Tensor, Tensor, Activation], ExpertWeights]
    route: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    moe: Callable[[Tensor, Tensor, Tensor, ExpertWeights], Tensor]
    store_kv: Callable[[Tensor, Tensor, LayerCache, Tensor], None]
    rotate_and_store: Callable[[Tensor, HeadNorm | None, Turn | None, AttentionPlan, LayerCache], Tensor]
    plan_attention: Callable[[AttentionMetadata, AttentionShape], AttentionPlan]
    attention: Callable[[Tensor, LayerCache, AttentionPlan, Tensor], None]
    philox: Callable[[Tensor, Tensor], Tensor]
    uniform: Callable[[Tensor, Tensor, Tensor], Tensor]
    argmax: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor, Tensor, SamplingTensors], Tensor]
    apply_bitmask: Callable[[Tensor, TokenMasks], None]
    apply_penalties: Callable[[Tensor, SeenTokens], None]
    top_logprobs: Callable[[Tensor, Tensor, int], TopLogprobs]
    computes_in: torch.dtype | None = None
    """Of which type activations are, whatever that of the weights; None: they are of the weights'."""
    pack_router: Callable[[Tensor, Tensor | None], LinearWeight] | None = None
    """`pack_linear` for what chooses experts, where that one rounds too coarsely for a choice."""
    copies_weights: bool = False
    """Whether packing copies a weight, of any floating type, into the op set's own: then nothing of the given
    memory is kept, but for biases."""
    take: Callable[[Tensor, Tensor], Tensor] = plain_take
    add: Callable[[Tensor, Tensor], None] = plain_add
    scale: Callable[[Tensor, float], None] = plain_scale
    copy: Callable[[Tensor, Tensor], None] = plain_copy
    rows: Callable[[LinearWeight, Tensor], Tensor] | None = None
    """[T, K] float32: rows of a packed weight by their numbers [T] int64, so that an embedding that is also
    an output matrix is not held twice; None: packed weights cannot be read, or share the given memory."""
    is_recordable: bool = False
    """Whether its operations wait for no device, so that they can be recorded in a CUDA graph."""
    record: Callable[[Callable[[], Tensor], int, int], Recorded] | None = None
    """Runs a function once, on so many rows, and keeps its operations to run them again on any number of rows
    up to another: where nothing but this op set's operations computes in it, and all of them go row by row.
    What it reads that was there before has to stay where it is as long as it is replayed. None: the op set
    records nothing."""
    stores_by_head: bool = False
    """Whether what a block holds is ordered as `kernels.cpu.paged` says, and not as `LayerCache` does."""
    reads_past_context: bool = False
    """Whether attention multiplies what lies past a context's end by 0, so that it has to be finite."""


def load_op_set(name: str, stored: torch.dtype | None = None, head_dim: int = 0) -> OpSet:
    """The op set `cpu`, `reference` or `triton`. Each call makes one of its own, with its own scratch memory.

    stored: what the weights of linear layers are packed as, by those sets that can; None: as they come.
    head_dim: the greatest of the model that it is for, as not every kernel takes every size.
    Raises ImportError where `triton` is asked for and not installed.
    """
    if name == "cpu":
        from kernels import cpu

        return cpu.load(stored, head_dim)
    if name == "reference":
        from kernels import reference

        return reference.make_op_set()
    if name == "triton":
        from kernels import triton

        return triton.make_op_set()
    raise ValueError(f"no op set {name!r}: there are 'cpu', 'reference' and 'triton'")
