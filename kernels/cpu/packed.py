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

from kernels.cpu.calls import Calls, Function
from kernels.cpu.native import TYPES
from kernels.cpu.native.structs import LINEAR_INPUT, LINEAR_WEIGHT, UNPACK
from kernels.linear import LinearWeight

PANEL: Final = 32
"""Outputs that are packed together."""
_INT8: Final = 3
_HALF_PRODUCTS: Final = 5
_PAIRS: Final = 4
UNITS: Final = {_INT8: 4, _PAIRS: 2}
"""How many inputs of one output lie side by side, of those kinds where that is more than one."""
_SCALED: Final = (_INT8, _HALF_PRODUCTS)
_MOST_BYTES: Final = (2**31 - 1) // (255 * 127)
"""Inputs whose products in 8 bits surely fit a sum of 32."""
_KINDS: Final = {
    torch.float32: (0,),
    torch.bfloat16: (_PAIRS, 1),
    torch.float16: (_HALF_PRODUCTS, 2),
    torch.int8: (_INT8,),
}
"""As linear.h names them, for each type that weights are stored as, the fastest first: not every processor
has all of them."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight as the library reads it, and what else it needs of it."""

    weight: Tensor
    bias: Tensor | None
    """[N] float32."""
    kind: int
    scales: Tensor | None = None
    """[N] float32: of int8, by what an output's sums are multiplied."""
    offsets: Tensor | None = None
    """[N] int32: of int8, what is taken from them first, as inputs are bytes without a sign."""
    packed: bytes = b""
    """What a call says of the weight."""


class PackedLinear:
    """Linear layers by a library."""

    def __init__(self, calls: Calls, stored: torch.dtype | None = None) -> None:
        """stored: what weights are packed as; None: as they come."""
        self._calls = calls
        self._stored = stored

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearWeight:
        """See `kernels.linear.pack_linear`."""
        out_features, in_features = weight.shape
        stored = self._stored or weight.dtype
        if stored == torch.int8 and in_features > _MOST_BYTES:
            stored = torch.bfloat16
        kind = next(kind for kind in _KINDS[stored] if self._calls.library.penstock_has_linear(kind))
        unit = UNITS.get(kind, 1)
        depth = -(-in_features // unit) * unit
        scales = torch.empty(out_features, dtype=torch.float32) if kind in _SCALED else None
        offsets = torch.empty(out_features, dtype=torch.int32) if kind == _INT8 else None
        packed = torch.empty(-(-out_features // PANEL) * PANEL * depth, dtype=stored)
        kept_bias = None if bias is None else bias.float()
        pointers = [0 if x is None else x.data_ptr() for x in (packed, scales, offsets, kept_bias)]
        of_weight = LINEAR_WEIGHT.pack(*pointers, in_features, out_features, kind)
        status = self._calls.library.penstock_pack_linear(
            ctypes.c_void_p(weight.data_ptr()),
            TYPES[weight.dtype],
            of_weight,
            ctypes.c_void_p(packed.data_ptr()),
        )
        assert status == 0, "a kind of weight that the library does not know"
        data = PackedWeight(packed, kept_bias, kind, scales, offsets, of_weight)
        return LinearWeight(data, bias, in_features, out_features, weight.dtype, weight.device)

    def run(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """See `kernels.linear.linear`."""
        data = weight.data
        assert isinstance(data, PackedWeight), "this weight was packed by another op set"
        rows = x.shape[0]
        out = torch.empty((rows, weight.out_features), dtype=x.dtype)
        given = LINEAR_INPUT.pack(TYPES[x.dtype], x.data_ptr(), out.data_ptr(), x.stride(0), rows)
        self._calls.make(Function.LINEAR, data.packed + given)
        return out

    def rows(self, weight: LinearWeight, ids: Tensor) -> Tensor:
        """ids: [T] int64 contiguous. Returns a new [T, K] float32: exactly what is stored, which for int8 is
        a number of -127 to 127 times its output's scale.

        A model whose output matrix is its embedding looks tokens up in the packed one, and keeps no other. A
        row's numbers lie a panel apart: each touches a line of the cache of its own.
        """
        data = weight.data
        assert isinstance(data, PackedWeight), "this weight was packed by another op set"
        out = torch.empty((len(ids), weight.in_features), dtype=torch.float32)
        pointers = (data.weight.data_ptr(), 0 if data.scales is None else data.scales.data_ptr())
        sizes = (weight.in_features, weight.out_features, data.kind, len(ids))
        self._calls.make(Function.UNPACK, UNPACK.pack(*pointers, ids.data_ptr(), out.data_ptr(), *sizes))
        return out
