"""Decodes whose context is cut between programs, so that few sequences keep a whole device busy, and how what
these found is put together (Dao et al. 2023, "Flash-Decoding").
"""

from __future__ import annotations

from typing import Any, Final

import triton
import triton.language as tl
from torch import Tensor

MAX_SPLITS: Final = 32
"""What one program of the reduction holds at once: of head_dim 128, 16 KiB of registers."""
MIN_KEYS_PER_SPLIT: Final = 128
"""At 512 bytes a key (head_dim 128, 16 bits) 64 KiB: 3 µs of one multiprocessor's share of the bandwidth,
about what launching the reduction costs."""
PROGRAMS_PER_SM: Final = 2
"""Each has 32 KiB on the way (see `launch_of`), so two have more than bandwidth times latency asks for,
23 KiB a multiprocessor, while one alone would wait after each tile."""


def num_splits_of(num_programs: int, max_keys: int, num_sms: int) -> int:
    """Into how many parts each context is cut.

    num_programs: sequences times KV heads. max_keys: the longest context, or window. Only numbers that the
    host knows, so that a recorded graph has one answer; a part's length comes from the context on the device.
    Nothing is cut where there are enough programs anyway: that some of them end late costs less than another
    pass.
    """
    wanted = num_sms * PROGRAMS_PER_SM // num_programs
    return max(1, min(wanted, max_keys // MIN_KEYS_PER_SPLIT, MAX_SPLITS))


@triton.jit(do_not_specialize=["num_splits"], do_not_specialize_on_alignment=["cu_seqlens_q"])
def _reduce_kernel(
    out: tl.tensor,
    partial: tl.tensor,
    partial_log: tl.tensor,
    cu_seqlens_q: tl.tensor,
    num_splits: int,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
):
    """A program for each sequence and head. A split's weight is the sum of its exponentials, of which
    `partial_log` has the binary logarithm; an empty one's is 0, and nothing of it is read."""
    pid = tl.program_id(0).to(tl.int64)
    seq = pid // HEADS
    row = tl.load(cu_seqlens_q + seq)
    if tl.load(cu_seqlens_q + seq + 1) == row:
        return
    s = tl.arange(0, SPLITS_PADDED)
    d = tl.arange(0, D_PADDED)
    log = tl.load(partial_log + pid * num_splits + s, mask=s < num_splits, other=float("-inf"))
    full = log > float("-inf")
    greatest = tl.maximum(tl.max(log, 0), -1.0e30)
    weight = tl.exp2(log - greatest)
    total = tl.sum(weight, 0)
    at = (pid * num_splits + s)[:, None] * D + d[None, :]
    parts = tl.load(partial + at, mask=full[:, None] & (d < D)[None, :], other=0.0)
    result = tl.sum(parts * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    at_row = (row.to(tl.int64) * HEADS + pid % HEADS) * D
    dtype = out.dtype.element_ty  # pyright: ignore[reportAttributeAccessIssue] - a pointer's type has it
    tl.store(out + at_row + d, result.to(dtype), mask=d < D)


def reduce_splits(out: Tensor, partial: Tensor, partial_log: Tensor, cu_seqlens_q: Tensor) -> None:
    """out: [T, heads, D]. partial: [B, heads, splits, D] float32, each split's own result; partial_log:
    [B, heads, splits] float32, the binary logarithm of the sum of its exponentials, -inf without keys."""
    num_seqs, num_heads, num_splits, head_dim = partial.shape
    kernel: Any = _reduce_kernel[(num_seqs * num_heads,)]
    kernel(
        out,
        partial,
        partial_log,
        cu_seqlens_q,
        num_splits,
        HEADS=num_heads,
        D=head_dim,
        D_PADDED=triton.next_power_of_2(head_dim),
        SPLITS_PADDED=MAX_SPLITS,
    )
