"""Rotary position embedding in the half-split layout of the Llama and Qwen checkpoints.

Su et al., "RoFormer", 2021: the pair (x[i], x[i + D/2]) turns by the angle position · inv_freq[i].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kernels.checks import check

if TYPE_CHECKING:
    from kernels.opset import OpSet


def rotary(ops: OpSet, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns every head of every token.

    x: [T, heads, D], D even, the last two dimensions contiguous (rows may be strided).
    cos, sin: [T, D/2], of each token's position. Returns a new contiguous [T, heads, D].
    """
    num_tokens, _, head_dim = x.shape
    assert head_dim % 2 == 0, f"head_dim {head_dim} is odd"
    check("x", x, (None, None, None), cos.dtype, cos.device)
    assert x.stride(1) == head_dim, f"x: heads are strided by {x.stride(1)}, expected {head_dim}"
    check("cos", cos, (num_tokens, head_dim // 2), x.dtype, x.device)
    check("sin", sin, (num_tokens, head_dim // 2), x.dtype, x.device)
    return ops.rotary(x, cos, sin)
