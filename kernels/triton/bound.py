"""Bounds of rows whose filters leave many tokens, by a search over the row.

A pass over the row gives the count or the mass above three keys, so that what is sought lies in a quarter of
the interval before, and the least and greatest key inside that, which ends the search early where few
different logits are left: after some 10 passes, 16 at most. Keys are the logits' bits in order (see
`order`), so the bound is exact. A row alone takes one multiprocessor's time; such rows are rare where anyone
waits for them.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.candidate import Filters
from kernels.triton.chunk import DONE, Chunks
from kernels.triton.weight import ABSENT, CHUNK, goal_of, load_logits, order, scale, weigh

NUM_WARPS = 8
"""With 2,048 logits at a time and four 64-bit sums for each: about 100 registers a thread, so that two rows
share a multiprocessor."""


def find_bounds(logits: Tensor, filters: Filters, chunks: Chunks, bounds: Tensor) -> None:
    """Makes of the bounds that all filters keep, [R] int32, the bounds of what is kept, and of the masses of
    the chunks those of what is kept. Rows whose bound is `DONE` or `ABSENT` stay as they are."""
    num_rows, num_chunks = chunks.peaks.shape
    _bounds_kernel[(num_rows,)](
        logits,
        filters.temperature,
        filters.top_k,
        filters.top_p,
        filters.log_min_p,
        chunks.peaks,
        chunks.masses,
        bounds,
        logits.shape[1],
        logits.stride(0),
        NUM_CHUNKS=num_chunks,
        CHUNKS=triton.next_power_of_2(num_chunks),
        CHUNK=CHUNK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize_on_alignment=["temperature", "top_ks", "top_ps", "log_min_ps"])
def _bounds_kernel(
    logits,
    temperature,
    top_ks,
    top_ps,
    log_min_ps,
    peaks,
    masses,
    bounds,
    vocab_size,
    stride,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    kept = tl.load(bounds + row)
    if (kept != DONE) & (kept != ABSENT):
        degrees, top_p, top_k = tl.load(temperature + row), tl.load(top_ps + row), tl.load(top_ks + row)
        logits += row * stride
        peaks += row * NUM_CHUNKS
        masses += row * NUM_CHUNKS
        chunks = tl.arange(0, CHUNKS)
        peak = tl.max(tl.load(peaks + chunks, mask=chunks < NUM_CHUNKS, other=float("-inf")))
        low = order(tl.load(log_min_ps + row))
        for stage in range(2):
            by_count = stage == 0
            if (by_count & (top_k > 0) & (top_k < vocab_size)) | ((stage == 1) & (top_p < 1.0)):
                total = _total(logits, vocab_size, peak, degrees, low, by_count, NUM_CHUNKS, CHUNK)
                goal = tl.where(by_count, top_k, goal_of(top_p, total))
                if total >= goal:
                    start = tl.maximum(low, kept)
                    low = _find(logits, vocab_size, peak, degrees, start, goal, by_count, NUM_CHUNKS, CHUNK)
        _sum_chunks(logits, vocab_size, peak, degrees, low, peaks, masses, NUM_CHUNKS, CHUNK)
        tl.store(bounds + row, low)


@triton.jit
def _total(
    logits, vocab_size, peak, temperature, low, by_count, NUM_CHUNKS: tl.constexpr, CHUNK: tl.constexpr
):
    """How many tokens, or what mass, there is from the bound up."""
    sums = tl.zeros([CHUNK], tl.int64)
    for chunk in range(NUM_CHUNKS):
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        scaled = scale(load_logits(logits, tokens, vocab_size), peak, temperature)
        measures = tl.where(by_count, (tokens < vocab_size).to(tl.int64), weigh(scaled))
        sums += tl.where(order(scaled) >= low, measures, 0)
    return tl.sum(sums)


@triton.jit
def _find(
    logits, vocab_size, peak, temperature, low, goal, by_count, NUM_CHUNKS: tl.constexpr, CHUNK: tl.constexpr
):
    """See `find`, over a row."""
    high = low * 0 + 1
    while high - low > 1:
        span = high - low
        first, middle, last = low + span // 4, low + span // 2, low + span // 2 + span // 4
        of_first = tl.zeros([CHUNK], tl.int64)
        of_middle = tl.zeros([CHUNK], tl.int64)
        of_last = tl.zeros([CHUNK], tl.int64)
        least = tl.zeros([CHUNK], tl.int32) + high
        greatest = tl.zeros([CHUNK], tl.int32) + low
        for chunk in range(NUM_CHUNKS):
            tokens = chunk * CHUNK + tl.arange(0, CHUNK)
            scaled = scale(load_logits(logits, tokens, vocab_size), peak, temperature)
            keys = tl.where(tokens < vocab_size, order(scaled), ABSENT)
            measures = tl.where(by_count, 1, weigh(scaled))
            of_first += tl.where(keys >= first, measures, 0)
            of_middle += tl.where(keys >= middle, measures, 0)
            of_last += tl.where(keys >= last, measures, 0)
            least = tl.minimum(least, tl.where(keys >= low, keys, high))
            greatest = tl.maximum(greatest, tl.where(keys < high, keys, low))
        # Nothing lies outside of these two.
        low, high = tl.maximum(low, tl.min(least)), tl.minimum(high, tl.max(greatest) + 1)
        low, high = _narrow(low, high, first, tl.sum(of_first), goal)
        low, high = _narrow(low, high, middle, tl.sum(of_middle), goal)
        low, high = _narrow(low, high, last, tl.sum(of_last), goal)
    return low


@triton.jit
def _narrow(low, high, key, found, goal):
    """The interval of the key that is sought, when `found` is what there is from `key` up."""
    enough = found >= goal
    high = tl.where(enough, high, tl.minimum(high, key))
    high = tl.where(found == goal, tl.minimum(high, tl.maximum(low, key) + 1), high)
    return tl.where(enough, tl.maximum(low, key), low), high


@triton.jit
def _sum_chunks(
    logits, vocab_size, peak, temperature, low, peaks, masses, NUM_CHUNKS: tl.constexpr, CHUNK: tl.constexpr
):
    """Writes each chunk's mass from the bound up, relative to the chunk's peak."""
    for chunk in range(NUM_CHUNKS):
        x = load_logits(logits, chunk * CHUNK + tl.arange(0, CHUNK), vocab_size)
        weights = weigh(scale(x, tl.load(peaks + chunk), temperature))
        kept = order(scale(x, peak, temperature)) >= low
        tl.store(masses + chunk, tl.sum(tl.where(kept, weights, 0)))
