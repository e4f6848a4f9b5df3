"""Mixture of experts: the cpu op set against its twin, and the twin against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.activation import Activation
from kernels.checks import FLOATS
from kernels.moe import moe, pack_experts, route
from kernels.opset import OpSet

SIZES = [(2, 1, 8, 4), (8, 2, 63, 20), (5, 5, 20, 63), (60, 4, 36, 12)]
"""Experts, of which picked, H, I."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (8, 2), (63, 7), (128, 8)])
def test_route(
    num_experts: int, top_k: int, dtype: torch.dtype, renormalize: bool, cpu: OpSet, reference: OpSet
) -> None:
    router_logits = (normal(77, num_experts) * 2).to(dtype)
    router_logits[::3] = router_logits[::3].round()  # many equals
    for ops in (cpu, reference):
        weights, ids = route(ops, router_logits, top_k, renormalize)
        assert (weights.dtype, ids.dtype) == (torch.float32, torch.int64)
        for row, mine, picked in zip(router_logits.float(), weights, ids, strict=True):
            values = row.tolist()
            best = sorted(range(num_experts), key=lambda i: (-values[i], i))[:top_k]
            assert picked.tolist() == best
            expected = row.double().softmax(0)[best].float()
            torch.testing.assert_close(mine, expected / expected.sum() if renormalize else expected)


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 130])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_moe(
    activation: Activation, size: tuple[int, int, int, int], rows: int, cpu: OpSet, reference: OpSet
) -> None:
    num_experts, top_k, hidden, width = size
    gate_up = normal(num_experts, 2 * width, hidden) * 0.2
    down = normal(num_experts, hidden, width, seed=1) * 0.2
    x, router_logits = normal(rows, hidden, seed=2), normal(rows, num_experts, seed=3)
    weights, ids = route(reference, router_logits, top_k, renormalize=True)
    weights, ids, x_before = weights.flip(1), ids.flip(1), x.clone()  # in no promised order

    expected = torch.zeros(rows, hidden)
    act = {"silu": torch.nn.SiLU(), "gelu_tanh": torch.nn.GELU(approximate="tanh")}[activation]
    for row in range(rows):
        for weight, expert in zip(weights[row], ids[row].tolist(), strict=True):
            gate, up = (gate_up[expert] @ x[row]).chunk(2)
            expected[row] += weight * (down[expert] @ (act(gate) * up))

    for ops in (cpu, reference):
        got = moe(ops, x, weights, ids, pack_experts(ops, gate_up, down, activation))
        assert got.is_contiguous()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, x_before), "the input was written to"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 17])
def test_moe_in_half_precision(rows: int, dtype: torch.dtype, cpu: OpSet, reference: OpSet) -> None:
    gate_up, down = (normal(8, 40, 64) * 0.2).to(dtype), (normal(8, 64, 20, seed=1) * 0.2).to(dtype)
    x = normal(rows, 64, seed=2).to(dtype)
    weights, ids = route(reference, normal(rows, 8, seed=3), 2, renormalize=True)
    wide = pack_experts(reference, gate_up.float(), down.float(), "silu")
    expected = moe(reference, x.float(), weights, ids, wide)
    for ops in (cpu, reference):
        got = moe(ops, x, weights, ids, pack_experts(ops, gate_up, down, "silu"))
        assert got.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got.float(), expected, rtol=4 * eps, atol=4 * eps)


def test_nan_of_one_row_stays_in_it(cpu: OpSet) -> None:
    """A row whose logits are not finite may be served beside others."""
    experts = pack_experts(cpu, normal(4, 16, 8), normal(4, 8, 8, seed=1), "silu")
    x, router_logits = normal(5, 8, seed=2), normal(5, 4, seed=3)
    clean = moe(cpu, x, *route(cpu, router_logits, 2, renormalize=True), experts)
    x[2], router_logits[2] = torch.nan, torch.nan
    got = moe(cpu, x, *route(cpu, router_logits, 2, renormalize=True), experts)
    others = [0, 1, 3, 4]
    assert torch.equal(got[others], clean[others])
    assert got[2].isnan().all()


def test_wrappers_name_what_is_wrong(cpu: OpSet) -> None:
    with pytest.raises(AssertionError, match=r"down: shape \(4, 8, 9\), expected \(4, 8, 8\)"):
        pack_experts(cpu, normal(4, 16, 8), normal(4, 8, 9), "silu")
    with pytest.raises(AssertionError, match="top_k 5, expected 1 to 4"):
        route(cpu, normal(3, 4), 5, renormalize=True)
    experts = pack_experts(cpu, normal(4, 16, 8), normal(4, 8, 8), "silu")
    weights, ids = route(cpu, normal(3, 4), 2, renormalize=True)
    with pytest.raises(AssertionError, match=r"weights: torch\.float64, expected torch\.float32"):
        moe(cpu, normal(3, 8), weights.double(), ids, experts)
    with pytest.raises(AssertionError, match=r"x: torch\.int64, expected float32, bfloat16 or float16"):
        moe(cpu, normal(3, 8).long(), weights, ids, experts)
