"""What stands between the two products of an MLP, gated or plain.

silu(x) = x / (1 + exp(-x)); gelu(x) = x · Φ(x), Φ being the normal distribution, and its approximation
gelu_tanh(x) = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), Hendrycks and Gimpel, "Gaussian Error Linear
Units", 2016; relu(x) = max(x, 0). The gated forms: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from kernels.checks import check, check_contiguous, check_float

if TYPE_CHECKING:
    from kernels.opset import OpSet

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


def act_and_mul(ops: OpSet, gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) · up.

    gate_up: [T, 2·I] contiguous, gate first. Returns a new contiguous [T, I] of its dtype.
    """
    check("gate_up", gate_up, (None, None), gate_up.dtype, gate_up.device)
    check_float("gate_up", gate_up)
    check_contiguous("gate_up", gate_up)
    assert gate_up.shape[1] % 2 == 0, f"gate_up: {gate_up.shape[1]} columns, expected an even number"
    return ops.act_and_mul(gate_up, activation)


def activate(ops: OpSet, x: Tensor, activation: Activation) -> Tensor:
    """activation(x). x: [T, I] contiguous. Returns a new contiguous [T, I] of its dtype."""
    check("x", x, (None, None), x.dtype, x.device)
    check_float("x", x)
    check_contiguous("x", x)
    return ops.activate(x, activation)
