"""Rotary position embedding in the half-split layout of the Llama and Qwen checkpoints.

Su et al., "RoFormer", 2021: the pair (x[i], x[i + R/2]) turns by the angle position · inv_freq[i]. Of a head
of D dimensions the first R turn and the others pass as they are (GPT-NeoX's `rotary_pct`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check, check_float

if TYPE_CHECKING:
    from kernels.opset import OpSet


def rotary(ops: OpSet, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns every head of every token.

    x: [T, heads, D], the last two dimensions contiguous (rows may be strided).
    cos, sin: [T, R/2] float32, of each token's position, R ≤ D. Returns a new contiguous [T, heads, D] of x's
    dtype.
    """
    num_tokens, _, head_dim = x.shape
    check("x", x, (None, None, None), x.dtype, x.device)
    check_float("x", x)
    assert x.stride(1) == head_dim, f"x: heads are strided by {x.stride(1)}, expected {head_dim}"
    assert 2 * cos.shape[1] <= head_dim, f"cos: {cos.shape[1]} pairs in a head_dim of {head_dim}"
    check("cos", cos, (num_tokens, None), torch.float32, x.device)
    check("sin", sin, tuple(cos.shape), torch.float32, x.device)
    return ops.rotary(x, cos, sin)
