"""See `kernels.penalty`. Pairs are different, so nothing is written twice."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.penalty import SeenTokens

BLOCK = 256


def apply_penalties(logits: Tensor, seen: SeenTokens) -> None:
    """See `kernels.penalty.apply_penalties`."""
    num_pairs = seen.index.shape[0]
    if num_pairs > 0:
        # Without fused multiplication and addition the bits are the reference's.
        _penalty_kernel[(triton.cdiv(num_pairs, BLOCK),)](
            logits,
            seen.index,
            seen.output_counts,
            seen.repetition,
            seen.frequency,
            seen.presence,
            num_pairs,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )


@triton.jit(
    do_not_specialize=["num_pairs"],
    do_not_specialize_on_alignment=["index", "counts", "repetitions", "frequencies", "presences"],
)
def _penalty_kernel(
    logits, index, counts, repetitions, frequencies, presences, num_pairs, BLOCK: tl.constexpr
):
    pairs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pairs < num_pairs
    places = logits + tl.load(index + pairs, mask=inside, other=0)
    logit = tl.load(places, mask=inside, other=0.0)
    count = tl.load(counts + pairs, mask=inside, other=0.0)
    repetition = tl.load(repetitions + pairs, mask=inside, other=1.0)
    logit = tl.where(logit > 0, tl.div_rn(logit, repetition), logit * repetition)
    logit -= tl.load(frequencies + pairs, mask=inside, other=0.0) * count
    presence = tl.load(presences + pairs, mask=inside, other=0.0)
    tl.store(places, tl.where(count > 0, logit - presence, logit), mask=inside)
