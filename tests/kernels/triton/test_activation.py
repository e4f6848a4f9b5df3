"""Triton's activations against the reference in float32."""

from __future__ import annotations

import pytest
import torch

from kernels import activation as op
from kernels.activation import Activation
from kernels.opset import OpSet
from kernels.triton.activation import act_and_mul, activate
from tests.kernels.triton.cases_activation import ACTIVATIONS, SHAPES, inputs
from tests.kernels.triton.closeness import assert_close
from tests.kernels.triton.device import DEVICE, DTYPES

pytestmark = [
    pytest.mark.parametrize("activation", ACTIVATIONS),
    pytest.mark.parametrize("dtype", DTYPES, ids=str),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_reference(
    shape: tuple[int, int], dtype: torch.dtype, activation: Activation, reference: OpSet
) -> None:
    rows, width = shape
    gate_up = inputs(rows, 2 * width, dtype, seed=rows + width)
    before = gate_up.clone()
    got = act_and_mul(gate_up, activation)
    assert (got.dtype, got.is_contiguous()) == (dtype, True)
    assert_close(got, op.act_and_mul(reference, gate_up.float(), activation))
    assert_close(activate(gate_up, activation), op.activate(reference, gate_up.float(), activation))
    assert torch.equal(gate_up, before), "the input was written to"


def test_extreme_values(dtype: torch.dtype, activation: Activation) -> None:
    x = torch.tensor([[-6e4, -100.0, 0.0, 100.0, 6e4]], device=DEVICE).to(dtype)
    assert torch.equal(activate(x, activation).float() + 0.0, x.float().clamp(min=0))
    nan = torch.full((1, 2), torch.nan, device=DEVICE, dtype=dtype)
    assert activate(nan, activation).isnan().all()
    assert act_and_mul(nan, activation).isnan().all()
