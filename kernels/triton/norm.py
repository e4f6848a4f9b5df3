"""See `kernels.norm`. Bound by memory: an element is read and written once, twice each with an addition.

A row is held in registers from its one read to its write, up to `LONGEST` columns.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST: Final = 16384
"""Columns: 32 float32 registers of each of 512 threads. Longer rows are read again for each pass."""
TILE: Final = 1024
"""Elements of a program that holds several short rows; a longer row has a program of its own."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.rms_norm`."""
    return _norm(x, None, weight, None, eps, centred=False)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.add_rms_norm`."""
    return _norm(x, residual, weight, None, eps, centred=False)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.norm.layer_norm`."""
    return _norm(x, None, weight, bias, eps, centred=True)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.norm.add_layer_norm`."""
    return _norm(x, residual, weight, bias, eps, centred=True)


def tile_of(width: int) -> tuple[int, int, int]:
    """Rows and columns of a program, and its warps: 8 elements, 16 bytes, of each thread where that fits.

    Of the width alone: how a row is added up must not depend on how many there are.
    """
    columns = min(1 << (width - 1).bit_length(), LONGEST)
    rows = max(1, TILE // columns)
    elements = rows * columns
    return rows, columns, 16 if elements > 4096 else max(1, min(elements // 256, 8))


def _norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool
) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    width, heads = x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    num_rows = x.shape[0] * heads
    rows, columns, warps = tile_of(width)
    kernel = _norm_kernel if width <= columns else _long_norm_kernel
    kernel[(triton.cdiv(num_rows, rows),)](
        x,
        residual,
        weight,
        bias,
        out,
        num_rows,
        heads,
        width,
        x.stride(0),
        x.stride(1) if x.dim() == 3 else 0,
        eps,
        CENTRED=centred,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
    )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _norm_kernel(
    x,
    residual,
    weight,
    bias,
    out,
    num_rows,
    heads,
    width,
    token_stride,
    head_stride,
    eps,
    CENTRED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    tokens, of_heads = rows // heads, rows % heads
    at = (tokens * token_stride + of_heads * head_stride)[:, None] + columns[None, :]
    packed = (rows * width)[:, None] + columns[None, :]
    y = tl.load(x + at, mask=inside, other=0.0)
    if residual is not None:
        y = (y.to(tl.float32) + tl.load(residual + packed, mask=inside, other=0.0)).to(y.dtype)
        tl.store(residual + packed, y, mask=inside)
    y = y.to(tl.float32)
    if CENTRED:
        y = tl.where(inside, y - (tl.sum(y, axis=1) / width)[:, None], 0.0)
    y = y * tl.rsqrt(tl.sum(y * y, axis=1) / width + eps)[:, None]
    affine = (of_heads * width)[:, None] + columns[None, :]
    y = y * tl.load(weight + affine, mask=inside, other=0.0)
    if bias is not None:
        y += tl.load(bias + affine, mask=inside, other=0.0)
    tl.store(out + packed, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _long_norm_kernel(
    x,
    residual,
    weight,
    bias,
    out,
    num_rows,
    heads,
    width,
    token_stride,
    head_stride,
    eps,
    CENTRED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """As `_norm_kernel`, of one row longer than COLUMNS; read twice more, from the cache as a rule."""
    tl.static_assert(ROWS == 1)
    row = tl.program_id(0).to(tl.int64)
    head = row % heads
    x += (row // heads) * token_stride + head * head_stride
    out += row * width
    weight += head * width
    if residual is not None:
        residual += row * width
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < width
        y = tl.load(x + columns, mask=inside, other=0.0)
        if residual is not None:
            y = (y.to(tl.float32) + tl.load(residual + columns, mask=inside, other=0.0)).to(y.dtype)
            tl.store(residual + columns, y, mask=inside)
        total += y.to(tl.float32)
    mean = tl.sum(total) / width if CENTRED else 0.0
    tl.debug_barrier()  # what is read next, other threads may have written
    read = x if residual is None else residual
    squares = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < width
        y = tl.load(read + columns, mask=inside, other=0.0).to(tl.float32)
        y = tl.where(inside, y - mean, 0.0)
        squares += y * y
    scale = tl.rsqrt(tl.sum(squares) / width + eps)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < width
        y = (tl.load(read + columns, mask=inside, other=0.0).to(tl.float32) - mean) * scale
        y *= tl.load(weight + columns, mask=inside, other=0.0)
        if bias is not None:
            y += tl.load(bias + head * width + columns, mask=inside, other=0.0)
        tl.store(out + columns, y.to(out.dtype.element_ty), mask=inside)
