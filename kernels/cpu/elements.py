"""What is done number by number, and rows of tables, in C++. See kernels/cpu/native/elements.cpp.

On float32, which is what activations are with the library; anything else goes the way of plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kernels.cpu.calls import Calls, Function
from kernels.cpu.native import TYPES
from kernels.cpu.native.structs import ELEMENTS, TAKE
from kernels.elements import plain_add, plain_copy, plain_scale

_ADD: Final = 0
_SCALE: Final = 1
_COPY: Final = 2


@dataclass(frozen=True, slots=True)
class Elements:
    """Small operations by a library."""

    calls: Calls

    def take(self, table: Tensor, ids: Tensor) -> Tensor:
        """See `kernels.elements.take`. Returns float32."""
        entries, width = table.shape
        out = torch.empty((len(ids), width), dtype=torch.float32)
        pointers = (table.data_ptr(), ids.data_ptr(), out.data_ptr())
        sizes = (entries, len(ids), width, TYPES[table.dtype])
        self.calls.make(Function.TAKE, TAKE.pack(*pointers, *sizes))
        return out

    def add(self, x: Tensor, to: Tensor) -> None:
        """See `kernels.elements.add`."""
        if x.dtype != torch.float32:
            return plain_add(x, to)
        return self._run(x, to, _ADD)

    def scale(self, x: Tensor, factor: float) -> None:
        """See `kernels.elements.scale`."""
        if x.dtype != torch.float32:
            return plain_scale(x, factor)
        return self._run(x, x, _SCALE, factor)

    def copy(self, x: Tensor, to: Tensor) -> None:
        """See `kernels.elements.copy`."""
        if x.dtype != torch.float32:
            return plain_copy(x, to)
        return self._run(x, to, _COPY)

    def _run(self, x: Tensor, to: Tensor, operation: int, factor: float = 0.0) -> None:
        places = (x.data_ptr(), to.data_ptr(), x.stride(0), to.stride(0))
        self.calls.make(Function.ELEMENTS, ELEMENTS.pack(*places, *x.shape, operation, factor))
