"""Penalties on seen tokens."""

from __future__ import annotations

import pytest
import torch

from kernels.opset import OpSet
from kernels.penalty import SeenTokens, apply_penalties


@pytest.fixture(params=["cpu", "reference"])
def ops(request: pytest.FixtureRequest) -> OpSet:
    return request.getfixturevalue(request.param)


def test_what_each_penalty_does(ops: OpSet) -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
    seen = SeenTokens(
        index=torch.tensor([0, 1, 4, 5, 6]),
        output_counts=torch.tensor([0.0, 0.0, 3.0, 1.0, 0.0]),
        repetition=torch.tensor([2.0, 2.0, 1.0, 1.0, 1.0]),
        frequency=torch.tensor([0.0, 0.0, 0.5, 0.5, 0.5]),
        presence=torch.tensor([1.0, 1.0, -0.25, -0.25, -0.25]),
    )
    apply_penalties(ops, logits, seen)
    assert logits.tolist() == [[1.0, -4.0, 1.0, 0.0], [1.75, 2.75, 3.0, 3.0]]


def test_twins_agree_to_the_bit(cpu: OpSet, reference: OpSet) -> None:
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 77, generator=gen) * 5
    logits[3, ::2] = -torch.inf
    num_pairs = 300
    seen = SeenTokens(
        index=torch.randperm(9 * 77, generator=gen)[:num_pairs],
        output_counts=torch.randint(0, 5, (num_pairs,), generator=gen).float(),
        repetition=torch.rand(num_pairs, generator=gen) + 0.5,
        frequency=torch.rand(num_pairs, generator=gen) * 4 - 2,
        presence=torch.rand(num_pairs, generator=gen) * 4 - 2,
    )
    other = logits.clone()
    apply_penalties(cpu, logits, seen)
    apply_penalties(reference, other, seen)
    assert torch.equal(logits, other)
    assert not logits.isnan().any()
