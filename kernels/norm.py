"""Root mean square norm, alone and fused with the residual addition before it.

y = x / sqrt(mean(x²) + eps) · weight, Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kernels.checks import check, check_contiguous

if TYPE_CHECKING:
    from kernels.opset import OpSet


def rms_norm(ops: OpSet, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm over the last dimension.

    x: [T, H] with weight [H], or per head [T, heads, D] with weight [heads, D]; the last dimension
    contiguous.
    Returns a new contiguous tensor of x's shape and dtype.
    """
    check("x", x, (None,) * x.dim(), weight.dtype, weight.device)
    assert x.dim() in (2, 3), f"x: {x.dim()} dimensions, expected 2 or 3"
    check("weight", weight, tuple(x.shape[1:]), x.dtype, x.device)
    check_contiguous("weight", weight)
    return ops.rms_norm(x, weight, eps)


def add_rms_norm(ops: OpSet, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, in place; returns the norm of the new residual.

    x, residual: [T, H] contiguous; weight: [H].
    """
    check("x", x, (None, weight.shape[0]), weight.dtype, weight.device)
    check("residual", residual, tuple(x.shape), x.dtype, x.device)
    check_contiguous("residual", residual)
    check_contiguous("weight", weight)
    return ops.add_rms_norm(x, residual, weight, eps)
