"""Rows of packed weights: what is stored, whatever the shape."""

from __future__ import annotations

import pytest
import torch

from kernels.cpu import make_op_set, native
from kernels.linear import linear, pack_linear

SHAPES = [(1, 1), (31, 7), (32, 64), (33, 63), (100, 129)]


@pytest.mark.skipif(native.load() is None, reason="only what the C++ kernels pack is read back")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_rows_are_what_is_multiplied_with(stored: torch.dtype, out_features: int, in_features: int) -> None:
    ops = make_op_set(native.load(), stored)
    weight = torch.randn(out_features, in_features)
    packed = pack_linear(ops, weight, None)
    ids = torch.randint(out_features, (50,))
    assert ops.rows is not None
    rows = ops.rows(packed, ids)
    assert rows.is_contiguous()
    assert rows.dtype == torch.float32
    if stored == torch.int8:
        half_a_step = weight.abs().amax(1, keepdim=True) / 127 / 2
        assert ((rows - weight[ids]).abs() <= half_a_step[ids] * (1 + 1e-5)).all()
    else:
        assert torch.equal(rows, weight.to(stored).float()[ids])
    # A row of the unit matrix picks a column: in every type its products are exact.
    columns = linear(ops, torch.eye(in_features), packed)
    torch.testing.assert_close(columns.T[ids], rows, rtol=1e-6, atol=0)
