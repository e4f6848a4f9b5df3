"""The greatest of each row."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.argmax import argmax
from kernels.opset import OpSet


@pytest.fixture(params=["cpu", "reference"])
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
