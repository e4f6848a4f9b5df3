"""Activations of the cpu op set against their twins, and the twins against the formulas."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from kernels.activation import Activation, act_and_mul, activate
from kernels.checks import FLOATS
from kernels.opset import OpSet

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

pytestmark = pytest.mark.parametrize("activation", ACTIVATIONS)


def formula(x: float, activation: Activation) -> float:
    match activation:
        case "silu":
            return x / (1 + math.exp(-x))
        case "gelu":
            return x * (1 + math.erf(x / math.sqrt(2))) / 2
        case "gelu_tanh":
            return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "relu":
            return max(x, 0.0)


def test_both_op_sets_follow_the_formula(activation: Activation, cpu: OpSet, reference: OpSet) -> None:
    x = torch.linspace(-12, 12, 481)
    expected = torch.tensor([[formula(value, activation) for value in x.tolist()]])
    for ops in (cpu, reference):
        torch.testing.assert_close(activate(ops, x[None], activation), expected, rtol=1e-5, atol=1e-6)
        doubled = act_and_mul(ops, torch.cat((x, torch.full_like(x, 2.0)))[None], activation)
        torch.testing.assert_close(doubled, 2 * expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 8, 63, 260, 1000])
@pytest.mark.parametrize("rows", [1, 2, 17, 129])
def test_equal_to_the_reference(
    rows: int, width: int, dtype: torch.dtype, activation: Activation, cpu: OpSet, reference: OpSet
) -> None:
    gate_up = (torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(width)) * 5).to(dtype)
    before = gate_up.clone()
    for run in (act_and_mul, activate):
        got, expected = run(cpu, gate_up, activation), run(reference, gate_up, activation)
        assert got.dtype == dtype
        assert got.is_contiguous()
        torch.testing.assert_close(got, expected)
    assert torch.equal(gate_up, before), "the input was written to"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_extreme_values_stay_finite(dtype: torch.dtype, activation: Activation, cpu: OpSet) -> None:
    x = torch.tensor([[-6e4, -100.0, 0.0, 100.0, 6e4]]).to(dtype)
    expected = x.clamp(min=0)
    torch.testing.assert_close(activate(cpu, x, activation), expected)
    torch.testing.assert_close(
        act_and_mul(cpu, torch.cat((x, x / x.abs().clamp(min=1)), 1), activation), expected
    )


def test_what_is_not_a_number_stays_its_own_place(activation: Activation, cpu: OpSet) -> None:
    x = torch.linspace(-3, 3, 3 * 37).view(3, 37)
    clean = activate(cpu, x, activation)
    # A NaN of any payload: the exponent is made by arithmetic on bits.
    odd = torch.tensor([0x7FC00001, 0xFFC0BEEF - (1 << 32), 0x7F800001]).int().view(torch.float32)
    places = [0, 20, 36]
    poisoned = x.clone()
    poisoned[1, places] = odd
    for run in (
        activate(cpu, poisoned, activation),
        act_and_mul(cpu, torch.cat((poisoned, x), 1), activation),
    ):
        assert run[1, places].isnan().all()
        assert run.isnan().sum() == 3
    got = activate(cpu, poisoned, activation)
    assert torch.equal(got[~got.isnan()], clean[~got.isnan()])
    assert activate(cpu, torch.tensor([[torch.inf, 89.0]]), activation).tolist() == [[torch.inf, 89.0]]
