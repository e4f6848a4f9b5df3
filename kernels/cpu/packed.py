"""Linear layers in C++, on weights packed for it.

Products are summed in float32 in order of k, the same way for every row, so that a row does not depend on the
rows beside it. See kernels/cpu/native/linear.inc.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kernels.cpu.native import TYPES, Linear
from kernels.linear import LinearWeight

PANEL: Final = 32
"""Outputs that are packed together."""
_KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As linear.h names them."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight as the library reads it, and what else it needs of it."""

    weight: Tensor
    bias: Tensor | None
    """[N] float32."""
    kind: int


class PackedLinear:
    """Linear layers by a library."""

    def __init__(self, native: ctypes.CDLL) -> None:
        self._native = native

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearWeight:
        """See `kernels.linear.pack_linear`."""
        out_features, in_features = weight.shape
        kind = _KINDS[weight.dtype]
        packed = torch.empty(-(-out_features // PANEL) * PANEL * in_features, dtype=weight.dtype)
        status = self._native.penstock_pack_linear(
            ctypes.c_void_p(weight.data_ptr()),
            TYPES[weight.dtype],
            *(out_features, in_features, kind),
            ctypes.c_void_p(packed.data_ptr()),
            None,
            None,
        )
        assert status == 0, "a kind of weight that the library does not know"
        data = PackedWeight(packed, None if bias is None else bias.float(), kind)
        return LinearWeight(data, bias, in_features, out_features, weight.dtype, weight.device)

    def run(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """See `kernels.linear.linear`."""
        data = weight.data
        assert isinstance(data, PackedWeight), "this weight was packed by another op set"
        out = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype)
        status = self._native.penstock_linear(
            ctypes.byref(
                Linear(
                    data.weight.data_ptr(),
                    None,
                    None,
                    None if data.bias is None else data.bias.data_ptr(),
                    *(x.data_ptr(), out.data_ptr(), x.stride(0)),
                    *(x.shape[0], weight.in_features, weight.out_features),
                    *(data.kind, TYPES[x.dtype]),
                )
            )
        )
        assert status == 0, "types that the library does not know"
        return out
