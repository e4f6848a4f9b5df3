"""See `kernels.logprob`. One read of the logits, then K groups of each row.

The first K of all tokens lie in the first K of all groups, both in order of (peak, lower index): before a
token of another group come the K groups' peaks, each greater, or equal and of a lower id. Logit and id are
one integer, so that the first is a maximum and nothing needs to be sorted.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.logprob import TopLogprobs
from kernels.triton.weight import CHUNK, GROUP, load_logits, order, weigh

HELD = 4096
"""Tokens of K groups that one program holds."""
MAX_TOP = HELD // GROUP
"""K up to which that is enough; above, torch sorts the vocabulary."""
NUM_WARPS = 4
NUM_WARPS_OF_ROW = 8


def top_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> TopLogprobs:
    """See `kernels.logprob.top_logprobs`."""
    num_rows, vocab_size = logits.shape
    num_chunks = -(-vocab_size // CHUNK)
    num_groups = num_chunks * (CHUNK // GROUP)
    found = TopLogprobs(
        chosen=logits.new_empty(num_rows),
        ranks=torch.empty(num_rows, dtype=torch.int64, device=logits.device),
        top_ids=torch.empty((num_rows, num_top), dtype=torch.int64, device=logits.device),
        top=logits.new_empty((num_rows, num_top)),
    )
    if num_rows == 0:
        return found
    peaks = logits.new_empty((num_rows, num_chunks))
    masses = logits.new_empty((num_rows, num_chunks), dtype=torch.int64)
    before = logits.new_empty((num_rows, num_chunks), dtype=torch.int32)
    group_peaks = logits.new_empty((num_rows, num_groups))
    groups = logits.new_empty((num_rows, MAX_TOP), dtype=torch.int32)
    log_mass = logits.new_empty(num_rows, dtype=torch.float64)
    _measure_kernel[(num_rows, num_chunks)](
        logits,
        token_ids,
        peaks,
        masses,
        before,
        group_peaks,
        vocab_size,
        logits.stride(0),
        CHUNK=CHUNK,
        GROUP=GROUP,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    _rows_kernel[(num_rows,)](
        logits,
        token_ids,
        peaks,
        masses,
        before,
        group_peaks,
        groups,
        log_mass,
        found.chosen,
        found.ranks,
        found.top_ids,
        found.top,
        num_top if num_top <= MAX_TOP else 0,
        vocab_size,
        logits.stride(0),
        num_chunks,
        num_groups,
        CHUNKS=triton.next_power_of_2(num_chunks),
        GROUPS=triton.next_power_of_2(num_groups),
        GROUP=GROUP,
        HELD=HELD,
        num_warps=NUM_WARPS_OF_ROW,
        enable_fp_fusion=False,
    )
    if num_top > MAX_TOP:
        values, ids = logits.sort(dim=1, descending=True, stable=True)
        found.top_ids.copy_(ids[:, :num_top])
        found.top.copy_(values[:, :num_top] - log_mass[:, None])
    return found


@triton.jit(do_not_specialize_on_alignment=["token_ids"])
def _measure_kernel(
    logits,
    token_ids,
    peaks,
    masses,
    before,
    group_peaks,
    vocab_size,
    stride,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Of each chunk: the greatest logit, the sum of the weights from there, the tokens before the chosen
    one; and its groups' greatest logits."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = row * tl.num_programs(1) + chunk
    logits += row * stride
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    x = load_logits(logits, tokens, vocab_size)
    groups = at * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP)
    tl.store(group_peaks + groups, tl.max(tl.reshape(x, [CHUNK // GROUP, GROUP]), axis=1))
    token = tl.load(token_ids + row)
    chosen = tl.load(logits + token)
    precede = (x > chosen) | ((x == chosen) & (tokens < token))
    tl.store(before + at, tl.sum(precede.to(tl.int32)))
    peak = tl.max(x)
    tl.store(peaks + at, peak)
    tl.store(masses + at, tl.sum(weigh(tl.where(x > float("-inf"), x - peak, float("-inf")))))


@triton.jit(do_not_specialize=["num_top"], do_not_specialize_on_alignment=["token_ids"])
def _rows_kernel(
    logits,
    token_ids,
    peaks,
    masses,
    before,
    group_peaks,
    groups,
    log_mass,
    chosen,
    ranks,
    top_ids,
    top,
    num_top,
    vocab_size,
    stride,
    num_chunks,
    num_groups,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    HELD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    chunks = tl.arange(0, CHUNKS)
    within = chunks < num_chunks
    at = row * num_chunks + chunks
    own_peaks = tl.load(peaks + at, mask=within, other=float("-inf"))
    peak = tl.max(own_peaks)
    shares = tl.exp(own_peaks.to(tl.float64) - peak)
    mass = tl.sum(tl.load(masses + at, mask=within, other=0).to(tl.float64) * shares)
    total = tl.log(mass) - 30.498475944637345 + peak  # 44 · log 2: the weights' unit
    tl.store(log_mass + row, total)
    tl.store(chosen + row, (tl.load(logits + tl.load(token_ids + row)) - total).to(tl.float32))
    tl.store(ranks + row, 1 + tl.sum(tl.load(before + at, mask=within, other=0)).to(tl.int64))

    groups += row * (HELD // GROUP)
    indices = tl.arange(0, GROUPS)
    of_groups = tl.load(
        group_peaks + row * num_groups + indices, mask=indices < num_groups, other=float("-inf")
    )
    rivals = _rivals(of_groups, indices, indices < num_groups)
    num_chosen = tl.minimum(num_top, num_groups)
    place = num_chosen * 0
    while place < num_chosen:
        best = tl.max(rivals)
        tl.store(groups + place, _index_of(best).to(tl.int32))
        rivals = tl.where(rivals == best, _NONE, rivals)
        place += 1
    tl.debug_barrier()  # the list is read by other threads than wrote it

    places = tl.arange(0, HELD)
    listed = places < num_chosen * GROUP
    tokens = tl.load(groups + places // GROUP, mask=listed, other=0) * GROUP + places % GROUP
    inside = listed & (tokens < vocab_size)
    rivals = _rivals(load_logits(logits, tl.where(inside, tokens, vocab_size), vocab_size), tokens, inside)
    place = num_chosen * 0
    while place < num_top:
        best = tl.max(rivals)
        token = _index_of(best)
        tl.store(top_ids + row * num_top + place, token)
        tl.store(top + row * num_top + place, (tl.load(logits + token) - total).to(tl.float32))
        rivals = tl.where(rivals == best, _NONE, rivals)
        place += 1


_NONE = tl.constexpr(-9223372036854775808)


@triton.jit
def _rivals(x, indices, there):
    """int64, the greater the earlier: by the greater float32, then by the lower index."""
    return tl.where(there, (order(x).to(tl.int64) << 32) | (0x7FFFFFFF - indices).to(tl.int64), _NONE)


@triton.jit
def _index_of(rival):
    return 0x7FFFFFFF - (rival & 0xFFFFFFFF)
