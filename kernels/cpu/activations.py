"""Activations in C++, vector by vector. See kernels/cpu/native/activation.cpp.

In float32, which is what activations are with the library; anything else goes the way of plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kernels.activation import Activation
from kernels.cpu import activation as plain
from kernels.cpu.calls import Calls, Function
from kernels.cpu.native.structs import ACTIVATION

_NUMBERS: Final[dict[Activation, int]] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
"""As activation.h names them."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations by a library."""

    calls: Calls

    def act_and_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """See `kernels.activation.act_and_mul`."""
        if gate_up.dtype != torch.float32:
            return plain.act_and_mul(gate_up, activation)
        rows, width = gate_up.shape
        out = torch.empty((rows, width // 2), dtype=torch.float32)
        return self._run(gate_up, out, activation, gated=True)

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        """See `kernels.activation.activate`."""
        if x.dtype != torch.float32:
            return plain.activate(x, activation)
        return self._run(x, torch.empty_like(x), activation, gated=False)

    def _run(self, x: Tensor, out: Tensor, activation: Activation, *, gated: bool) -> Tensor:
        arguments = (x.data_ptr(), out.data_ptr(), *out.shape, _NUMBERS[activation], gated)
        self.calls.make(Function.ACTIVATE, ACTIVATION.pack(*arguments))
        return out
