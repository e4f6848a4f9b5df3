"""Linear layers on packed weights.

`F.linear` in fp32 gives a row other bits in other batches. oneDNN on a weight that was reordered once does
not (checked for batches of 2 to 699 rows), and is faster from 2 rows on. One row alone takes another code
path on some processors, so it runs as two.

In half precision nothing exact is promised. bfloat16 is packed too where the processor computes it: 2 rows by
a weight of 3072 x 1024 take 0.11 ms against 0.25 ms. float16 needs AVX512-FP16; without it `F.linear` is slow
(512 rows: 157 ms, 30 ms in float32).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import FLOATS
from kernels.linear import LinearWeight

log = logging.getLogger(__name__)

PackLinear = Callable[[Tensor, Tensor | None], LinearWeight]
RunLinear = Callable[[Tensor, LinearWeight], Tensor]


def choose_linear() -> tuple[PackLinear, RunLinear]:
    """Packed by oneDNN where this torch and processor can, else `F.linear`, which is said in the log."""
    packable = frozenset(dtype for dtype in FLOATS if _can_pack(dtype))
    if torch.float32 not in packable:
        log.warning(
            "no packed linear layers (oneDNN) here: they run by F.linear, "
            "and a sequence's tokens may depend on what else is in the batch"
        )
    linear = _PackedLinear(packable)
    return linear.pack, linear.run


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        _multiply(torch.ones(2, 8, dtype=dtype), _reorder(torch.ones(8, 8, dtype=dtype)), None)
    except (RuntimeError, NotImplementedError, AttributeError):  # built without it, or not for this processor
        return False
    return True


@dataclass(frozen=True, slots=True)
class _PackedLinear:
    packable: frozenset[torch.dtype]

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearWeight:
        """See `kernels.linear.pack_linear`."""
        out_features, in_features = weight.shape
        data = _reorder(weight) if weight.dtype in self.packable else weight
        return LinearWeight(data, bias, in_features, out_features, weight.dtype, weight.device)

    def run(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """See `kernels.linear.linear`."""
        if weight.dtype not in self.packable:
            return reference.linear(x, weight)
        data = weight.data
        assert isinstance(data, Tensor), "this weight was packed by another op set"
        if x.shape[0] == 1 and weight.dtype == torch.float32:
            return _multiply(x.repeat(2, 1), data, weight.bias)[:1]
        return _multiply(x, data, weight.bias)


def _reorder(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
