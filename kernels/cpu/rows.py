"""Rows of a packed weight, as they were before it was packed.

A model whose output matrix is its embedding looks tokens up in the packed one, and keeps no other.
"""

from __future__ import annotations

from torch import Tensor

from kernels.cpu.packed import PANEL, UNITS, PackedWeight
from kernels.linear import LinearWeight


def rows(weight: LinearWeight, ids: Tensor) -> Tensor:
    """ids: [T] int64. Returns a new [T, K] float32: exactly what is stored, which for int8 is a number of
    -127 to 127 times its output's scale.

    A row's numbers lie a panel apart: each touches a line of the cache of its own. A thousand rows of a
    thousand numbers take some milliseconds, beside a step of seconds.
    """
    data = weight.data
    assert isinstance(data, PackedWeight), "this weight was packed by another op set"
    depth = UNITS.get(data.kind, 1)
    panels = data.weight.view(-1, -(-weight.in_features // depth), PANEL, depth)
    found = panels[ids // PANEL, :, ids % PANEL].float().view(len(ids), -1)[:, : weight.in_features]
    return found.contiguous() if data.scales is None else found * data.scales[ids, None]
