"""The gate of a gated MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kernels.checks import check, check_contiguous

if TYPE_CHECKING:
    from kernels.opset import OpSet


def silu_and_mul(ops: OpSet, gate_up: Tensor) -> Tensor:
    """silu(gate) · up, with silu(x) = x / (1 + exp(-x)).

    gate_up: [T, 2·I] contiguous, gate first. Returns a new contiguous [T, I].
    """
    check("gate_up", gate_up, (None, None), gate_up.dtype, gate_up.device)
    check_contiguous("gate_up", gate_up)
    assert gate_up.shape[1] % 2 == 0, f"gate_up: {gate_up.shape[1]} columns, expected an even number"
    return ops.silu_and_mul(gate_up)
