"""See `kernels.rotary`. Bound by memory: each element is read once and written once.

Models use `kernels.triton.qkv` instead, which also stores the keys; this is for what does not fit there.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# pyright: reportArgumentType=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS: Final = 1024
"""Pairs of a program: 8 of each thread of 4 warps."""


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary.rotary`."""
    num_tokens, num_heads, head_dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    half = cos.shape[1]
    half_block = triton.next_power_of_2(max(half, 1))
    heads_block = min(triton.next_power_of_2(num_heads), max(1, PAIRS // half_block))
    grid = (num_tokens, triton.cdiv(num_heads, heads_block))
    _rotary_kernel[grid](
        x,
        cos,
        sin,
        out,
        num_heads,
        head_dim,
        half,
        x.stride(0),
        cos.stride(0),
        sin.stride(0),
        HEADS=heads_block,
        HALF=half_block,
        REST=triton.next_power_of_2(head_dim - 2 * half) if head_dim > 2 * half else 0,
    )
    return out


@triton.jit
def _rotary_kernel(
    x,
    cos,
    sin,
    out,
    num_heads,
    head_dim,
    half,
    x_stride,
    cos_stride,
    sin_stride,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pairs = tl.arange(0, HALF)
    x += token * x_stride
    out += token * num_heads * head_dim
    c = tl.load(cos + token * cos_stride + pairs, mask=pairs < half, other=1.0)[None, :]
    s = tl.load(sin + token * sin_stride + pairs, mask=pairs < half, other=0.0)[None, :]
    inside = (heads < num_heads)[:, None] & (pairs < half)[None, :]
    at = (heads * head_dim)[:, None] + pairs[None, :]
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + half, (second * c + first * s).to(out.dtype.element_ty), mask=inside)
    if REST > 0:
        columns = 2 * half + tl.arange(0, REST)
        kept = (heads < num_heads)[:, None] & (columns < head_dim)[None, :]
        at = (heads * head_dim)[:, None] + columns[None, :]
        tl.store(out + at, tl.load(x + at, mask=kept, other=0.0), mask=kept)
