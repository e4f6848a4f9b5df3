"""Sampling: each filter keeps what it says, the draws are distributed as they should be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.opset import OpSet
from kernels.philox import uniform
from kernels.sample import SamplingTensors, sample


def params(
    rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> SamplingTensors:
    return SamplingTensors(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k),
        top_p=torch.full((rows,), top_p),
        min_p=torch.full((rows,), min_p),
        any_top_k=top_k > 0,
        any_top_p=top_p < 1,
        any_min_p=min_p > 0,
    )


@pytest.fixture(params=["cpu", "reference"])
def ops(request: pytest.FixtureRequest) -> OpSet:
    return request.getfixturevalue(request.param)


PROBABILITIES = [0.02, 0.30, 0.05, 0.25, 0.10, 0.03, 0.20, 0.05]
FILTERS = [
    ({}, set(range(8))),
    ({"top_k": 3}, {1, 3, 6}),
    ({"top_k": 1}, {1}),
    ({"top_k": 100}, set(range(8))),
    ({"top_p": 0.5}, {1, 3}),
    ({"top_p": 0.6}, {1, 3, 6}),
    ({"top_p": 0.01}, {1}),
    ({"min_p": 0.4}, {1, 3, 6}),
    ({"min_p": 1.0}, {1}),
    ({"top_k": 4, "top_p": 0.7}, {1, 3, 6}),  # of what top_k left: 0.30, 0.25, 0.20 of 0.85
    ({"top_k": 7}, {0, 1, 2, 3, 4, 5, 6, 7} - {0}),
    ({"top_k": 5}, {1, 2, 3, 4, 6, 7}),  # 2 and 7 are equally probable: both stay
    ({"min_p": 0.3, "top_p": 0.9}, {1, 3, 4, 6}),
]


@pytest.mark.parametrize(("filters", "kept"), FILTERS, ids=lambda value: str(value))
def test_draws_follow_the_filtered_distribution(
    filters: dict[str, float], kept: set[int], ops: OpSet, cpu: OpSet
) -> None:
    rows = 20_000 if ops.name == "cpu" else 1_000
    logits = torch.tensor(PROBABILITIES).log().expand(rows, -1).contiguous()
    uniforms = uniform(cpu, torch.full((rows,), 11), torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    drawn = sample(ops, logits, uniforms, params(rows, **filters))
    counts = torch.bincount(drawn, minlength=8).double()
    assert {i for i in range(8) if counts[i] > 0} == kept
    mass = sum(PROBABILITIES[i] for i in kept)
    expected = torch.tensor([PROBABILITIES[i] / mass * rows for i in sorted(kept)])
    chi_square = ((counts[sorted(kept)] - expected) ** 2 / expected).sum().item()
    # p = 0.001 by Wilson and Hilferty's approximation of the quantile.
    freedom = max(1, len(kept) - 1)
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < quantile


def test_temperature_sharpens(cpu: OpSet) -> None:
    rows = 20_000
    logits = torch.tensor([0.0, 1.0]).expand(rows, -1).contiguous()
    uniforms = (torch.arange(rows) + 0.5) / rows
    share = sample(cpu, logits, uniforms, params(rows, temperature=0.5)).double().mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-3)


@pytest.mark.parametrize("vocab_size", [1, 2, 63, 1000])
def test_twins_agree_on_mixed_rows(vocab_size: int, cpu: OpSet, reference: OpSet) -> None:
    gen = torch.Generator().manual_seed(vocab_size)
    rows = 130
    mixed = SamplingTensors(
        temperature=torch.rand(rows, generator=gen) * 2 + 0.05,
        top_k=torch.randint(0, 40, (rows,), generator=gen),
        top_p=(torch.rand(rows, generator=gen) * 1.5).clamp(0.01, 1.0),
        min_p=(torch.rand(rows, generator=gen) * 0.4 - 0.2).clamp(min=0.0),
        any_top_k=True,
        any_top_p=True,
        any_min_p=True,
    )
    logits = torch.randn(rows, vocab_size, generator=gen) * 4
    uniforms = torch.rand(rows, generator=gen)
    assert torch.equal(sample(cpu, logits, uniforms, mixed), sample(reference, logits, uniforms, mixed))


def test_flat_top_p_needs_more_than_the_sorted_prefix(cpu: OpSet, reference: OpSet) -> None:
    gen = torch.Generator().manual_seed(5)
    logits = torch.randn(40, 1000, generator=gen) * 0.1
    logits[::2] *= 50  # every other row is sharp: the prefix is enough for it
    uniforms = torch.rand(40, generator=gen)
    wide = params(40, top_p=0.9)
    assert torch.equal(sample(cpu, logits, uniforms, wide), sample(reference, logits, uniforms, wide))


def test_ends_of_the_unit_interval_draw_tokens_that_are_kept(ops: OpSet) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, -1).contiguous()
    uniforms: Tensor = torch.tensor([0.0, 1 - 2**-24])
    assert sample(ops, logits, uniforms, params(2)).tolist() == [1, 2]


def test_a_top_p_that_underflows_keeps_the_most_probable(ops: OpSet) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    underflown = params(1, top_p=1e-50)  # 0 as a float32
    for u in (0.0, 0.5, 0.999):
        assert sample(ops, logits, torch.tensor([u]), underflown).tolist() == [1]
