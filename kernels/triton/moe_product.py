"""y = x · Wᵀ for each pair of a token and an expert, W being that expert's: one launch for all experts.

An expert's weights are read by its tiles only, so what no token picked is not read. Products are of the
operands' dtype into float32; float32 operands are multiplied as such, never as TF32.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# pyright: reportArgumentType=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activation import Activation
from kernels.triton.activation import activated
from kernels.triton.device import arch
from kernels.triton.moe_tiles import Tiles

GROUP: Final = 8
"""Tiles that go through the columns together, so that they find each other's weights in the L2 cache."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch parameters. `columns` are of one weight: with a gate, a program computes twice as many."""

    columns: int
    inner: int
    warps: int
    stages: int


def rows_of(num_pairs: int, num_experts: int, dtype: torch.dtype) -> int:
    """Rows of a tile: an expert's share, if pairs spread evenly; 16 is the least that tensor cores take."""
    share = num_pairs / num_experts
    most = 32 if dtype == torch.float32 else 128
    return min(most, 16 if share <= 16 else 32 if share <= 32 else 64 if share <= 64 else 128)


def blocks_of(rows: int, dtype: torch.dtype, gated: bool, arch: int) -> Blocks:
    """Few rows: bound by reading weights, so narrow blocks for many programs, deep in their inner dimension.

    Many rows: bound by arithmetic, so accumulators of 128 by 128, and by 256 with a gate where they fit the
    registers: from Hopper on, whose tensor cores take their operands from shared memory. float32 has no
    tensor cores here: small blocks.
    """
    if dtype == torch.float32:
        return Blocks(columns=32, inner=32, warps=4, stages=2)
    if rows <= 32:
        return Blocks(columns=32 if gated else 64, inner=128, warps=4, stages=4)
    if rows == 64:
        return Blocks(columns=64 if gated else 128, inner=64, warps=4, stages=4)
    return Blocks(columns=64 if gated and arch < 90 else 128, inner=64, warps=8, stages=3)


def grouped_product(
    x: Tensor, weight: Tensor, tiles: Tiles, pairs_per_row: int, activation: Activation | None
) -> Tensor:
    """x: [rows, K], pair p reading row p // pairs_per_row; weight: [E, N, K], both contiguous.

    With an activation, weight is [E, 2·N, K] and the result activation(gate) · up. Returns [pairs, N].
    """
    num_pairs, inner = x.shape[0] * pairs_per_row, x.shape[1]
    width = weight.shape[1] if activation is None else weight.shape[1] // 2
    blocks = blocks_of(tiles.block, x.dtype, activation is not None, arch(x.device))
    out = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    _product_kernel[(tiles.most * triton.cdiv(width, blocks.columns),)](
        x,
        weight,
        out,
        tiles.pairs,
        tiles.experts,
        tiles.used,
        num_pairs,
        width,
        inner,
        PAIRS_PER_ROW=pairs_per_row,
        ACTIVATION=activation,
        EVEN=inner % blocks.inner == 0,
        ROWS=tiles.block,
        COLUMNS=blocks.columns,
        INNER=blocks.inner,
        GROUP=GROUP,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return out


@triton.jit(do_not_specialize=["num_pairs"])
def _product_kernel(
    x,
    weight,
    out,
    tile_pairs,
    tile_experts,
    used,
    num_pairs,
    width,
    inner,
    PAIRS_PER_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
):
    num_tiles = tl.load(used)
    num_columns = tl.cdiv(width, COLUMNS)
    program = tl.program_id(0)
    first = program // (GROUP * num_columns) * GROUP
    in_group = min(num_tiles - first, GROUP)
    if in_group <= 0:
        return
    program = program % (GROUP * num_columns)
    if program >= in_group * num_columns:
        return
    tile = first + program % in_group
    columns = program // in_group * COLUMNS + tl.arange(0, COLUMNS)

    expert = tl.load(tile_experts + tile).to(tl.int64)
    pairs = tl.load(tile_pairs + tile * ROWS + tl.arange(0, ROWS))
    # What is behind the last pair or column computes the first pair's or last column's, and is not stored.
    rows = tl.where(pairs < num_pairs, pairs, 0) // PAIRS_PER_ROW
    ks = tl.arange(0, INNER)
    x_at = x + rows.to(tl.int64)[:, None] * inner + ks[None, :]
    weight_rows = tl.minimum(columns, width - 1)
    weight_at = weight + expert * (width if ACTIVATION is None else 2 * width) * inner
    weight_at += weight_rows[None, :] * inner + ks[:, None]
    up_at = weight_at + width * inner
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, inner, INNER):
        if EVEN:
            a = tl.load(x_at + k)
            b = tl.load(weight_at + k)
        else:
            a = tl.load(x_at + k, mask=(k + ks < inner)[None, :], other=0.0)
            b = tl.load(weight_at + k, mask=(k + ks < inner)[:, None], other=0.0)
        y = tl.dot(a, b, y, input_precision="ieee")
        if ACTIVATION is not None:
            if EVEN:
                c = tl.load(up_at + k)
            else:
                c = tl.load(up_at + k, mask=(k + ks < inner)[:, None], other=0.0)
            up = tl.dot(a, c, up, input_precision="ieee")
    if ACTIVATION is not None:
        y = activated(y, ACTIVATION) * up
    at = out + pairs.to(tl.int64)[:, None] * width + columns[None, :]
    stored = (pairs < num_pairs)[:, None] & (columns < width)[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=stored)
