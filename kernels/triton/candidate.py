"""Draws of rows whose filters leave few tokens, from few groups of the vocabulary.

What a filter keeps at least can be told from the groups' peaks: the k-th greatest peak is no greater than
the k-th greatest logit, and where peaks down to one have top_p of all mass, so have the logits down to it.
Groups whose peak is below that bound hold nothing that is kept; the tokens of the others that are not below
it, where they are at most HELD, fit into one program's registers, which finds the exact bounds and draws.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.chunk import DONE, Chunks
from kernels.triton.weight import (
    ABSENT,
    GROUP,
    LEAST,
    find,
    goal_of,
    load_logits,
    order,
    portion,
    scale,
    weigh,
)

HELD = 4096
"""Candidates of a row: 16 for each thread."""
MAX_GROUPS = 512
"""Groups that are searched for candidates: an eighth of the largest vocabulary. A row that would need more
most often has more than HELD candidates too."""
NUM_WARPS = 8


@dataclass(frozen=True, slots=True)
class Filters:
    """Parameters of R rows."""

    temperature: Tensor
    """[R] float32."""
    top_k: Tensor
    """[R] int64; 0 keeps all."""
    top_p: Tensor
    """[R] float32; 1 keeps all."""
    log_min_p: Tensor
    """[R] float32; -inf keeps all."""


def draw_candidates(
    logits: Tensor, uniforms: Tensor, filters: Filters, chunks: Chunks, bounds: Tensor, out: Tensor
) -> None:
    """Writes to out, [R] int64, the token ids of rows that it can draw, and to bounds, [R] int32: `DONE` for
    those, `ABSENT` for rows without filters, for others the `order` of a logit that all their filters
    keep."""
    num_rows, num_chunks = chunks.peaks.shape
    assert chunks.group_peaks is not None
    num_groups = chunks.group_peaks.shape[1]
    groups = torch.empty((num_rows, MAX_GROUPS), dtype=torch.int32, device=logits.device)
    values = logits.new_empty((num_rows, HELD))
    ids = torch.empty((num_rows, HELD), dtype=torch.int32, device=logits.device)
    _candidates_kernel[(num_rows,)](
        logits,
        uniforms,
        filters.temperature,
        filters.top_k,
        filters.top_p,
        filters.log_min_p,
        chunks.peaks,
        chunks.masses,
        chunks.group_peaks,
        groups,
        values,
        ids,
        bounds,
        out,
        logits.shape[1],
        logits.stride(0),
        num_chunks,
        num_groups,
        CHUNKS=triton.next_power_of_2(num_chunks),
        GROUPS=triton.next_power_of_2(num_groups),
        GROUP=GROUP,
        HELD=HELD,
        MAX_GROUPS=MAX_GROUPS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )


@triton.jit(
    do_not_specialize_on_alignment=["uniforms", "temperature", "top_ks", "top_ps", "log_min_ps"],
)
def _candidates_kernel(
    logits,
    uniforms,
    temperature,
    top_ks,
    top_ps,
    log_min_ps,
    peaks,
    masses,
    group_peaks,
    groups,
    values,
    ids,
    bounds,
    out,
    vocab_size,
    stride,
    num_chunks,
    num_groups,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    HELD: tl.constexpr,
    MAX_GROUPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    degrees, top_p = tl.load(temperature + row), tl.load(top_ps + row)
    top_k = tl.load(top_ks + row)
    top_k = tl.where(top_k < vocab_size, top_k, 0)
    low = order(tl.load(log_min_ps + row))
    bound = tl.full([], ABSENT, tl.int32)
    if (top_k > 0) | (top_p < 1.0) | (low > LEAST):
        peak, total = _peak_and_mass(
            peaks + row * num_chunks, masses + row * num_chunks, num_chunks, degrees, CHUNKS
        )
        indices = tl.arange(0, GROUPS)
        own_peaks = tl.load(
            group_peaks + row * num_groups + indices, mask=indices < num_groups, other=float("-inf")
        )
        scaled = scale(own_peaks, peak, degrees)
        keys = tl.where(indices < num_groups, order(scaled), ABSENT)
        # What top_p counts over: the whole row, or else what is held, which is all that other filters left.
        plain = (top_k == 0) & (low == LEAST)
        low = tl.maximum(low, _least_kept(keys, weigh(scaled), top_k, tl.where(plain, top_p, 1.0), total))
        total = tl.where(plain, total, 0)
        num_chosen = _choose_groups(keys >= low, indices, groups + row * MAX_GROUPS, MAX_GROUPS)
        bound = low
        if num_chosen <= MAX_GROUPS:
            values += row * HELD
            ids += row * HELD
            tl.debug_barrier()  # the list is read by other threads than wrote it
            count = tl.zeros([], tl.int32)
            start = num_chosen * 0  # a while: the interpreter takes no sum for the end of a range
            while start < num_chosen * GROUP:
                places = start + tl.arange(0, HELD)
                within = places < num_chosen * GROUP
                group = tl.load(groups + row * MAX_GROUPS + places // GROUP, mask=within, other=0)
                tokens = tl.where(within, group * GROUP + places % GROUP, vocab_size)
                x = scale(load_logits(logits + row * stride, tokens, vocab_size), peak, degrees)
                kept = (tokens < vocab_size) & (order(x) >= low)
                at = count + tl.cumsum(kept.to(tl.int32)) - 1
                tl.store(values + at, x, mask=kept & (at < HELD))
                tl.store(ids + at, tokens, mask=kept & (at < HELD))
                count += tl.sum(kept.to(tl.int32))
                start += HELD
            if count <= HELD:
                tl.debug_barrier()
                token = _draw_held(
                    values, ids, count, low, top_k, top_p, total, tl.load(uniforms + row), HELD
                )
                tl.store(out + row, token.to(tl.int64))
                bound = tl.full([], DONE, tl.int32)
    tl.store(bounds + row, bound)


@triton.jit
def _peak_and_mass(peaks, masses, num_chunks, temperature, CHUNKS: tl.constexpr):
    """The row's greatest logit and the sum of its weights, up to rounding."""
    chunks = tl.arange(0, CHUNKS)
    own_peaks = tl.load(peaks + chunks, mask=chunks < num_chunks, other=float("-inf"))
    own_masses = tl.load(masses + chunks, mask=chunks < num_chunks, other=0)
    peak = tl.max(own_peaks)
    shares = tl.exp(scale(own_peaks, peak, temperature)).to(tl.float64)
    return peak, tl.sum((own_masses.to(tl.float64) * shares).to(tl.int64))


@triton.jit
def _least_kept(keys, weights, top_k, top_p, total):
    """The key of a peak that top_k and top_p keep together, or `LEAST` where the peaks don't tell one.

    top_k's own bound holds for both. top_p must be 1 where min_p is on: it counts over what that left.
    """
    by_count = top_k > 0
    measures = tl.where(by_count, (keys != ABSENT).to(tl.int64), weights)
    # The total is off by rounding: it must not be too small here.
    goal = tl.where(by_count, top_k, goal_of(top_p * 1.00001, total))
    low = tl.full([], LEAST, tl.int32)
    if (by_count | (top_p < 1.0)) & (tl.sum(measures) >= goal):
        low = find(keys, measures, low, goal)
    return low


@triton.jit
def _choose_groups(chosen, indices, groups, MAX_GROUPS: tl.constexpr):
    """Lists the chosen groups in order, as many as have room. Returns how many there are."""
    num_chosen = tl.sum(chosen.to(tl.int32))
    if num_chosen <= MAX_GROUPS:
        at = tl.cumsum(chosen.to(tl.int32)) - 1
        tl.store(groups + at, indices, mask=chosen)
    return num_chosen


@triton.jit
def _draw_held(values, ids, count, low, top_k, top_p, of_row, uniform, HELD: tl.constexpr):
    """The token that the uniform draws of those that are held, by exact bounds. top_p counts over the mass
    `of_row`, or, where that is 0, over what is held."""
    places = tl.arange(0, HELD)
    held = places < count
    scaled = tl.load(values + places, mask=held, other=float("-inf"))
    keys = tl.where(held, order(scaled), ABSENT)
    if (top_k > 0) & (count > top_k):
        low = find(keys, held.to(tl.int64), low, top_k)
    weights = tl.where(keys >= low, weigh(scaled), 0)
    total = tl.sum(weights)
    if (top_p < 1.0) & (total > 0):
        goal = tl.minimum(goal_of(top_p, tl.where(of_row > 0, of_row, total)), total)
        low = find(keys, weights, low, goal)
        weights = tl.where(keys >= low, weights, 0)
        total = tl.sum(weights)
    drawn = tl.min(tl.where(tl.cumsum(weights) > portion(total, uniform), places, HELD - 1))
    token = tl.load(ids + drawn, mask=drawn < count, other=0)
    return tl.where(total > 0, token, 0)
