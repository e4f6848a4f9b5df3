"""Triton's norms against the reference in float32, over rows that are strided."""

from __future__ import annotations

import pytest
import torch

from kernels import norm as op
from kernels.opset import OpSet
from kernels.triton.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm, tile_of
from tests.kernels.triton.cases_norm import PER_HEAD, ROWS_AND_WIDTHS, inputs
from tests.kernels.triton.closeness import assert_close
from tests.kernels.triton.device import DTYPES

EPS = 1e-5

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("shape", [*ROWS_AND_WIDTHS, *PER_HEAD], ids=str)
def test_norms(shape: tuple[int, ...], dtype: torch.dtype, reference: OpSet) -> None:
    case = inputs(*shape, dtype=dtype)
    x, weight, bias = case.x, case.weight, case.bias
    wide = x.float()
    for got, expected in (
        (rms_norm(x, weight, EPS), op.rms_norm(reference, wide, weight, EPS)),
        (layer_norm(x, weight, bias, EPS), op.layer_norm(reference, wide, weight, bias, EPS)),
        (layer_norm(x, weight, None, EPS), op.layer_norm(reference, wide, weight, None, EPS)),
    ):
        assert (got.dtype, got.is_contiguous()) == (dtype, True)
        assert_close(got, expected)


@pytest.mark.parametrize("shape", ROWS_AND_WIDTHS, ids=str)
def test_norms_after_an_addition(shape: tuple[int, int], dtype: torch.dtype, reference: OpSet) -> None:
    """The norm is of the residual as it was rounded."""
    case = inputs(*shape, dtype=dtype)
    x, weight, bias = case.x, case.weight, case.bias
    added = case.residual + x
    wide = added.float()
    rms, layer = case.residual.clone(), case.residual.clone()
    assert_close(add_rms_norm(x, rms, weight, EPS), op.rms_norm(reference, wide, weight, EPS))
    assert_close(
        add_layer_norm(x, layer, weight, bias, EPS), op.layer_norm(reference, wide, weight, bias, EPS)
    )
    assert torch.equal(rms, added)
    assert torch.equal(layer, added)


@pytest.mark.parametrize("width", [8, 300])
def test_a_row_does_not_depend_on_its_batch(width: int, dtype: torch.dtype) -> None:
    case = inputs(37, width, dtype=dtype)
    together = rms_norm(case.x, case.weight, EPS)
    for row in (0, 9, 36):
        assert torch.equal(rms_norm(case.x[row : row + 1], case.weight, EPS)[0], together[row])
    case.x[3] = torch.nan
    poisoned = rms_norm(case.x, case.weight, EPS)
    assert poisoned[3].isnan().all()
    assert torch.equal(poisoned[4:], together[4:])


def test_no_rows(dtype: torch.dtype) -> None:
    case = inputs(2, 8, dtype=dtype)
    assert rms_norm(case.x[:0], case.weight, EPS).shape == (0, 8)
    assert tile_of(8)[0] > 2  # so that rows beyond the last were in the tiles above
