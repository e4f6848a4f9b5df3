"""Triton's rotary embedding, and the linear layers, which are torch's, against the reference in float32."""

from __future__ import annotations

import pytest
import torch

from kernels import rotary as op
from kernels.opset import OpSet
from kernels.triton.linear import linear, pack_linear
from kernels.triton.rotary import rotary
from tests.kernels.triton.cases_rotary import SHAPES, inputs
from tests.kernels.triton.closeness import assert_close
from tests.kernels.triton.device import DEVICE, DTYPES

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotary(shape: tuple[int, int, int, int], dtype: torch.dtype, reference: OpSet) -> None:
    x, cos, sin = inputs(*shape, dtype=dtype)
    got = rotary(x, cos, sin)
    assert (got.dtype, got.is_contiguous()) == (dtype, True)
    assert torch.equal(got[..., shape[3] :], x[..., shape[3] :])
    assert_close(got, op.rotary(reference, x.float(), cos, sin))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 17])
def test_linear(rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator(DEVICE).manual_seed(rows)
    x, weight, bias = (
        torch.randn(shape, device=DEVICE, generator=generator).to(dtype)
        for shape in ((rows, 260), (63, 260), (63,))
    )
    packed = pack_linear(weight, bias if with_bias else None)
    assert packed.data.data_ptr() == weight.data_ptr()
    expected = x.double() @ weight.double().T + (bias.double() if with_bias else 0.0)
    assert_close(linear(x, packed), expected)
