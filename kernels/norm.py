"""Root mean square norm and layer norm, alone and fused with the residual addition before them.

rms_norm: y = x / sqrt(mean(x²) + eps) · weight, Zhang and Sennrich, "Root Mean Square Layer Normalization",
2019. layer_norm: y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias, with the variance of the population;
Ba, Kiros and Hinton, "Layer Normalization", 2016.

Weights and biases are float32 whatever the dtype of x is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check, check_contiguous, check_float

if TYPE_CHECKING:
    from kernels.opset import OpSet


def rms_norm(ops: OpSet, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm over the last dimension.

    x: [T, H] with weight [H], or per head [T, heads, D] with weight [heads, D]; the last dimension
    contiguous.
    Returns a new contiguous tensor of x's shape and dtype.
    """
    _check_normed(x, weight, None)
    return ops.rms_norm(x, weight, eps)


def add_rms_norm(ops: OpSet, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, in place; returns the norm of the new residual.

    x, residual: [T, H] contiguous, of one dtype; weight: [H].
    """
    _check_added(x, residual, weight, None)
    return ops.add_rms_norm(x, residual, weight, eps)


def layer_norm(ops: OpSet, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Norm over the last dimension, of the shapes that `rms_norm` takes; bias: as weight, or None for 0."""
    _check_normed(x, weight, bias)
    return ops.layer_norm(x, weight, bias, eps)


def add_layer_norm(
    ops: OpSet, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    """residual += x, in place; returns the layer norm of the new residual. Shapes as in `add_rms_norm`."""
    _check_added(x, residual, weight, bias)
    return ops.add_layer_norm(x, residual, weight, bias, eps)


def _check_normed(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check("x", x, (None,) * x.dim(), x.dtype, x.device)
    check_float("x", x)
    assert x.dim() in (2, 3), f"x: {x.dim()} dimensions, expected 2 or 3"
    _check_affine(weight, bias, x)


def _check_added(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check("x", x, (None, None), x.dtype, x.device)
    check_float("x", x)
    check("residual", residual, tuple(x.shape), x.dtype, x.device)
    check_contiguous("residual", residual)
    _check_affine(weight, bias, x)


def _check_affine(weight: Tensor, bias: Tensor | None, x: Tensor) -> None:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            check(name, tensor, tuple(x.shape[1:]), torch.float32, x.device)
            check_contiguous(name, tensor)
