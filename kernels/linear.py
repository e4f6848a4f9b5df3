"""y = x · Wᵀ + b, with the weight in whatever layout the op set computes fastest in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from kernels.checks import check, check_contiguous, check_float

if TYPE_CHECKING:
    import torch

    from kernels.opset import OpSet


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight of one op set: only that op set reads `data`."""

    data: object
    bias: Tensor | None
    in_features: int
    out_features: int
    dtype: torch.dtype
    device: torch.device


def pack_linear(ops: OpSet, weight: Tensor, bias: Tensor | None) -> LinearWeight:
    """Takes a weight [N, K] and a bias [N] or None, both contiguous; the result may share their memory.

    They are of one type, unless the op set has one of its own that it copies them to (`copies_weights`)."""
    check("weight", weight, (None, None), weight.dtype, weight.device)
    check_float("weight", weight)
    check_contiguous("weight", weight)
    if bias is not None:
        dtype = bias.dtype if ops.copies_weights else weight.dtype
        check("bias", bias, (weight.shape[0],), dtype, weight.device)
        check_float("bias", bias)
    return ops.pack_linear(weight, bias)


def pack_router(ops: OpSet, weight: Tensor) -> LinearWeight:
    """As `pack_linear`, without a bias and in no fewer bits than 16: between two experts that are nearly
    alike, rounding would choose."""
    if ops.pack_router is None:
        return pack_linear(ops, weight, None)
    check("weight", weight, (None, None), weight.dtype, weight.device)
    check_float("weight", weight)
    check_contiguous("weight", weight)
    return ops.pack_router(weight, None)


def linear(ops: OpSet, x: Tensor, weight: LinearWeight) -> Tensor:
    """x: [T, K] contiguous, T ≥ 1, of a type that the op set takes with this weight. Returns a new contiguous
    [T, N] of x's type."""
    check("x", x, (None, weight.in_features), x.dtype, weight.device)
    check_float("x", x)
    check_contiguous("x", x)
    assert x.shape[0] >= 1, "x: no rows"
    return ops.linear(x, weight)
