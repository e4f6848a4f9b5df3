"""What a model does number by number between its larger operations, and rows of its tables.

Plain torch does these as well as anything; an op set has its own where a step's operations are recorded, so
that none of them is torch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check, check_contiguous, check_float

if TYPE_CHECKING:
    from kernels.opset import OpSet


def take(ops: OpSet, table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table [N, K] contiguous by their numbers [T] int64, 0 ≤ number < N. Returns a new contiguous
    [T, K] of the table's type, or of the one that the op set computes in."""
    check("table", table, (None, None), table.dtype, table.device)
    check_float("table", table)
    check_contiguous("table", table)
    check("ids", ids, (None,), torch.int64, table.device)
    return ops.take(table, ids)


def add(ops: OpSet, x: Tensor, to: Tensor) -> None:
    """to += x, in place. Both [T, K] of one type; rows may be strided."""
    _check_pair(x, to)
    ops.add(x, to)


def scale(ops: OpSet, x: Tensor, factor: float) -> None:
    """x *= factor, in place. x: [T, K]; rows may be strided."""
    check("x", x, (None, None), x.dtype, x.device)
    check_float("x", x)
    ops.scale(x, factor)


def copy(ops: OpSet, x: Tensor, to: Tensor) -> None:
    """to = x, in place. Both [T, K] of one type; rows may be strided."""
    _check_pair(x, to)
    ops.copy(x, to)


def _check_pair(x: Tensor, to: Tensor) -> None:
    check("x", x, (None, None), x.dtype, x.device)
    check_float("x", x)
    check("to", to, tuple(x.shape), x.dtype, x.device)


def plain_take(table: Tensor, ids: Tensor) -> Tensor:
    """`take` by torch."""
    return table[ids]


def plain_add(x: Tensor, to: Tensor) -> None:
    """`add` by torch."""
    to.add_(x)


def plain_scale(x: Tensor, factor: float) -> None:
    """`scale` by torch."""
    x.mul_(factor)


def plain_copy(x: Tensor, to: Tensor) -> None:
    """`copy` by torch."""
    to.copy_(x)
