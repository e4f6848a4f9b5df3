"""Norms in C++: a row at a time, in one order of sums. See kernels/cpu/native/norm.cpp.

In float32, which is what activations are with the library; anything else goes the way of plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu import elementwise
from kernels.cpu.calls import Calls, Function
from kernels.cpu.native.structs import NORM


@dataclass(frozen=True, slots=True)
class Norms:
    """Norms by a library."""

    calls: Calls

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `kernels.norm.rms_norm`."""
        if x.dtype != torch.float32:
            return elementwise.rms_norm(x, weight, eps)
        return self._run(x, weight, None, eps, centred=False)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `kernels.norm.add_rms_norm`."""
        if x.dtype != torch.float32:
            return elementwise.add_rms_norm(x, residual, weight, eps)
        return self._run_added(x, residual, weight, None, eps, centred=False)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """See `kernels.norm.layer_norm`."""
        if x.dtype != torch.float32:
            return elementwise.layer_norm(x, weight, bias, eps)
        return self._run(x, weight, bias, eps, centred=True)

    def add_layer_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor:
        """See `kernels.norm.add_layer_norm`."""
        if x.dtype != torch.float32:
            return elementwise.add_layer_norm(x, residual, weight, bias, eps)
        return self._run_added(x, residual, weight, bias, eps, centred=True)

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool) -> Tensor:
        shape = x.shape
        out = torch.empty(shape, dtype=torch.float32)
        heads, head_stride = (shape[1], x.stride(1)) if len(shape) == 3 else (1, 0)
        self.calls.make(
            Function.NORM,
            NORM.pack(
                *(x.data_ptr(), 0, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()),
                *(x.stride(0), head_stride, shape[0], heads, shape[-1], centred, eps),
            ),
        )
        return out

    def _run_added(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool
    ) -> Tensor:
        out = torch.empty_like(residual)
        rows, width = residual.shape
        self.calls.make(
            Function.NORM,
            NORM.pack(
                *(x.data_ptr(), residual.data_ptr(), weight.data_ptr()),
                *(0 if bias is None else bias.data_ptr(), out.data_ptr()),
                *(x.stride(0), 0, rows, 1, width, centred, eps),
            ),
        )
        return out
