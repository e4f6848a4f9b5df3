"""The greatest of each row."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.argmax import argmax
from kernels.opset import OpSet


@pytest.fixture(params=["cpu", "torch_cpu", "reference"])
def ops(request: pytest.FixtureRequest) -> OpSet:
    return request.getfixturevalue(request.param)


def test_the_first_of_equals_or_the_first_nan(ops: OpSet) -> None:
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[0.0, 2.0, 2.0], [-inf, -inf, -inf], [1.0, inf, 3.0], [inf, nan, nan]])
    assert argmax(ops, logits).tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("vocab_size", [1, 63, 1000])
def test_the_greatest_wherever_it_is(vocab_size: int, ops: OpSet) -> None:
    logits = torch.randn(50, vocab_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(argmax(ops, logits), logits.max(1).indices)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_of_many_rows_each_has_its_own(num_threads: int, ops: OpSet) -> None:
    torch.set_num_threads(num_threads)
    logits = torch.randn(70, 4099, generator=torch.Generator().manual_seed(0))[:, :4097]
    places = [0, 15, 16, 1023, 1024, 2047, 4095, 4096]
    for row, place in enumerate(places):
        logits[row, place:] = 9.0  # it and all after it
        logits[20 + row, place], logits[20 + row, -1] = math.nan, math.nan
        logits[40 + row] = -math.inf
        logits[40 + row, place] = -3.4e38
    found = argmax(ops, logits)
    assert found[: len(places)].tolist() == places
    assert found[20 : 20 + len(places)].tolist() == places
    assert found[40 : 40 + len(places)].tolist() == places
    others = ~logits.isnan().any(1)
    assert torch.equal(logits.gather(1, found[:, None])[others, 0], logits[others].amax(1))
