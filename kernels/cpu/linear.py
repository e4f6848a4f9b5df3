"""Linear layers on packed weights.

`F.linear` in fp32 gives a row other bits in other batches. oneDNN on a weight that was reordered once does
not (checked for batches of 2 to 699 rows), and is faster from 2 rows on. One row alone takes another code
path on some processors, so it runs as two. Weights in half precision run by `F.linear`: nothing exact is
promised of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from kernels import reference
from kernels.linear import LinearWeight

log = logging.getLogger(__name__)

PackLinear = Callable[[Tensor, Tensor | None], LinearWeight]
RunLinear = Callable[[Tensor, LinearWeight], Tensor]


def choose_linear() -> tuple[PackLinear, RunLinear]:
    """Packed by oneDNN where this torch and processor can, else `F.linear`, which is said in the log."""
    if _can_pack():
        return _pack, _run_packed
    log.warning(
        "no packed linear layers (oneDNN) here: they run by F.linear, "
        "and a sequence's tokens may depend on what else is in the batch"
    )
    return reference.pack_linear, reference.linear


def _can_pack() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        _run_packed(torch.ones(2, 8), _pack(torch.ones(8, 8), None))
    except (RuntimeError, NotImplementedError, AttributeError):  # built without it, or not for this processor
        return False
    return True


def _pack(weight: Tensor, bias: Tensor | None) -> LinearWeight:
    if weight.dtype != torch.float32:
        return reference.pack_linear(weight, bias)
    out_features, in_features = weight.shape
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return LinearWeight(packed, bias, in_features, out_features, weight.dtype, weight.device)


def _run_packed(x: Tensor, weight: LinearWeight) -> Tensor:
    if weight.dtype != torch.float32:
        return reference.linear(x, weight)
    if x.shape[0] == 1:
        return _run_packed(x.repeat(2, 1), weight)[:1]
    return torch.ops.mkldnn._linear_pointwise(x, weight.data, weight.bias, "none", [], "")
