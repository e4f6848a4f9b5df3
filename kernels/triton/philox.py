"""See `kernels.philox`: one launch for a step's rows, which is all that it costs."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.philox import MULTIPLIERS, ROUNDS, WEYL

BLOCK = 128
"""Rows of a program: one for each thread of its warps."""
NUM_WARPS = 4

_ROUNDS = tl.constexpr(ROUNDS)
_MULTIPLIER_0, _MULTIPLIER_1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_WEYL_0, _WEYL_1 = tl.constexpr(WEYL[0]), tl.constexpr(WEYL[1])


def philox(key: Tensor, counter: Tensor) -> Tensor:
    """See `kernels.philox.philox`."""
    num_rows = key.shape[0]
    out = torch.empty((num_rows, 4), dtype=torch.int64, device=key.device)
    if num_rows > 0:
        grid = (triton.cdiv(num_rows, BLOCK),)
        _philox_kernel[grid](
            key, counter, out, num_rows, key.stride(0), counter.stride(0), BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return out


def uniform(seeds: Tensor, output_indices: Tensor, samples: Tensor) -> Tensor:
    """See `kernels.philox.uniform`."""
    num_rows = seeds.shape[0]
    out = torch.empty(num_rows, dtype=torch.float32, device=seeds.device)
    if num_rows > 0:
        grid = (triton.cdiv(num_rows, BLOCK),)
        _uniform_kernel[grid](seeds, output_indices, samples, out, num_rows, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _philox_kernel(key, counter, out, num_rows, key_stride, counter_stride, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    key += rows * key_stride
    counter += rows * counter_stride
    k0 = tl.load(key, mask=inside, other=0)
    k1 = tl.load(key + 1, mask=inside, other=0)
    c0 = tl.load(counter, mask=inside, other=0)
    c1 = tl.load(counter + 1, mask=inside, other=0)
    c2 = tl.load(counter + 2, mask=inside, other=0)
    c3 = tl.load(counter + 3, mask=inside, other=0)
    c0, c1, c2, c3 = _ten_rounds(k0, k1, c0, c1, c2, c3)
    out += rows * 4
    tl.store(out, c0.to(tl.int64), mask=inside)
    tl.store(out + 1, c1.to(tl.int64), mask=inside)
    tl.store(out + 2, c2.to(tl.int64), mask=inside)
    tl.store(out + 3, c3.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["seeds", "indices", "samples"])
def _uniform_kernel(seeds, indices, samples, out, num_rows, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    seed = tl.load(seeds + rows, mask=inside, other=0)
    index = tl.load(indices + rows, mask=inside, other=0)
    sample = tl.load(samples + rows, mask=inside, other=0)
    nothing = seed ^ seed
    word, _, _, _ = _ten_rounds(seed, seed >> 32, index, sample, nothing, nothing)
    # 24 bits: exact as a float32, and so is the product.
    tl.store(out + rows, (word >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0), mask=inside)


@triton.jit
def _ten_rounds(k0, k1, c0, c1, c2, c3):
    """Key and counter: int64 whose low 32 bits count. Returns four uint64 of 32 bits.

    Words are kept in 64 bits because a product's two halves are then a shift and a cut.
    """
    k0, k1 = _low(k0), _low(k1)
    c0, c1, c2, c3 = _low(c0), _low(c1), _low(c2), _low(c3)
    for _ in tl.static_range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, _low(product1)
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, _low(product0)
        k0, k1 = _low(k0 + _WEYL_0), _low(k1 + _WEYL_1)
    return c0, c1, c2, c3


@triton.jit
def _low(word):
    return word.to(tl.uint64) & 0xFFFFFFFF
