"""Rows of logits by chunks: how great and how heavy each is, and the token that a draw finds by that."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.weight import CHUNK, GROUP, LEAST, load_logits, order, portion, scale, weigh

NUM_WARPS = 4
DONE = tl.constexpr(2147483647)
"""In place of a row's bound: its token is drawn already."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """What one read of R rows gives. C chunks and G groups cover the vocabulary; what they have outside is
    -inf."""

    peaks: Tensor
    """[R, C] float32: the greatest logits."""
    masses: Tensor
    """[R, C] int64: sums of the weights that tokens have when scaled from the chunk's peak."""
    group_peaks: Tensor | None
    """[R, G] float32, where they were asked for."""


def measure_chunks(logits: Tensor, temperature: Tensor, with_groups: bool) -> Chunks:
    """logits: [R, V] float32, R and V above 0; temperature: [R] float32."""
    num_rows, vocab_size = logits.shape
    num_chunks = -(-vocab_size // CHUNK)
    chunks = Chunks(
        peaks=logits.new_empty((num_rows, num_chunks)),
        masses=logits.new_empty((num_rows, num_chunks), dtype=torch.int64),
        group_peaks=logits.new_empty((num_rows, num_chunks * (CHUNK // GROUP))) if with_groups else None,
    )
    _measure_kernel[(num_rows, num_chunks)](
        logits,
        temperature,
        chunks.peaks,
        chunks.masses,
        chunks.group_peaks,
        vocab_size,
        logits.stride(0),
        WITH_GROUPS=with_groups,
        CHUNK=CHUNK,
        GROUP=GROUP,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return chunks


def draw(
    logits: Tensor, uniforms: Tensor, temperature: Tensor, chunks: Chunks, bounds: Tensor | None, out: Tensor
) -> None:
    """Writes a token id per row to out, [R] int64, but where the row's bound is `DONE`.

    bounds: [R] int32, the `order` of what is kept at least.
    """
    num_rows, num_chunks = chunks.peaks.shape
    _draw_kernel[(num_rows,)](
        logits,
        uniforms,
        temperature,
        chunks.peaks,
        chunks.masses,
        bounds,
        out,
        logits.shape[1],
        logits.stride(0),
        num_chunks,
        WITH_BOUNDS=bounds is not None,
        CHUNKS=triton.next_power_of_2(num_chunks),
        CHUNK=CHUNK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize_on_alignment=["temperature"])
def _measure_kernel(
    logits,
    temperature,
    peaks,
    masses,
    group_peaks,
    vocab_size,
    stride,
    WITH_GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_chunks = tl.num_programs(1)
    x = load_logits(logits + row * stride, chunk * CHUNK + tl.arange(0, CHUNK), vocab_size)
    if WITH_GROUPS:
        of_groups = tl.max(tl.reshape(x, [CHUNK // GROUP, GROUP]), axis=1)
        groups = (row * num_chunks + chunk) * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP)
        tl.store(group_peaks + groups, of_groups)
    peak = tl.max(x)
    mass = tl.sum(weigh(scale(x, peak, tl.load(temperature + row))))
    tl.store(peaks + row * num_chunks + chunk, peak)
    tl.store(masses + row * num_chunks + chunk, mass)


@triton.jit(do_not_specialize_on_alignment=["uniforms", "temperature"])
def _draw_kernel(
    logits,
    uniforms,
    temperature,
    peaks,
    masses,
    bounds,
    out,
    vocab_size,
    stride,
    num_chunks,
    WITH_BOUNDS: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    bound = LEAST
    if WITH_BOUNDS:
        bound = tl.load(bounds + row)
    if bound != DONE:
        degrees = tl.load(temperature + row)
        chunks = tl.arange(0, CHUNKS)
        within = chunks < num_chunks
        of_peaks = tl.load(peaks + row * num_chunks + chunks, mask=within, other=float("-inf"))
        of_masses = tl.load(masses + row * num_chunks + chunks, mask=within, other=0)
        peak = tl.max(of_peaks)
        # A chunk's mass from its own peak becomes its mass from the row's.
        shares = tl.exp(scale(of_peaks, peak, degrees)).to(tl.float64)
        weights = (of_masses.to(tl.float64) * shares).to(tl.int64)
        total = tl.sum(weights)
        target = portion(total, tl.load(uniforms + row))
        chosen = tl.min(tl.where(tl.cumsum(weights) > target, chunks, num_chunks - 1))
        rest = target - tl.sum(tl.where(chunks < chosen, weights, 0))
        weight = tl.sum(tl.where(chunks == chosen, weights, 0))
        mass = tl.sum(tl.where(chunks == chosen, of_masses, 0))
        own_peak = tl.max(tl.where(chunks == chosen, of_peaks, float("-inf")))
        ratio = mass.to(tl.float64) / tl.maximum(weight, 1).to(tl.float64)
        rest = tl.minimum((rest.to(tl.float64) * ratio).to(tl.int64), mass - 1)
        tokens = chosen * CHUNK + tl.arange(0, CHUNK)
        x = load_logits(logits + row * stride, tokens, vocab_size)
        of_tokens = weigh(scale(x, own_peak, degrees))
        if WITH_BOUNDS:
            of_tokens = tl.where(order(scale(x, peak, degrees)) >= bound, of_tokens, 0)
        last = tl.max(tl.where(of_tokens > 0, tokens, 0))
        token = tl.min(tl.where(tl.cumsum(of_tokens) > rest, tokens, last))
        # Without any mass (the peak is not finite) the last token that has some is 0.
        tl.store(out + row, tl.where(total > 0, token, 0).to(tl.int64))
