"""Sampling: each filter keeps what it says, the draws are distributed as they should be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.opset import OpSet
from kernels.philox import uniform
from kernels.sample import SamplingTensors, sample
from tests.chi_square import assert_follows


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


@pytest.fixture(params=["cpu", "torch_cpu", "reference"])
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
    mass = sum(PROBABILITIES[i] for i in kept)
    assert_follows(drawn.tolist(), [p / mass if i in kept else 0.0 for i, p in enumerate(PROBABILITIES)])


def test_temperature_sharpens(cpu: OpSet) -> None:
    rows = 20_000
    logits = torch.tensor([0.0, 1.0]).expand(rows, -1).contiguous()
    uniforms = (torch.arange(rows) + 0.5) / rows
    share = sample(cpu, logits, uniforms, params(rows, temperature=0.5)).double().mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-3)


def mixed(rows: int, seed: int) -> SamplingTensors:
    """Rows of every combination: without filters, with narrow ones and with wide ones."""
    gen = torch.Generator().manual_seed(seed)

    def some(values: Tensor, off: float) -> Tensor:
        return torch.where(torch.rand(rows, generator=gen) < 0.5, values, off)

    k = torch.where(
        torch.rand(rows, generator=gen) < 0.7,
        torch.randint(1, 40, (rows,), generator=gen),
        torch.randint(1, 4000, (rows,), generator=gen),
    )
    return SamplingTensors(
        temperature=torch.rand(rows, generator=gen) * 2 + 0.05,
        top_k=some(k, 0).long(),
        top_p=some(torch.rand(rows, generator=gen).clamp(min=0.01), 1.0),
        min_p=some(torch.rand(rows, generator=gen) ** 4, 0.0),
        any_top_k=True,
        any_top_p=True,
        any_min_p=True,
    )


def mixed_logits(rows: int, vocab_size: int, seed: int) -> Tensor:
    """Flat rows, sharp rows, rows with many equal logits, rows with impossible tokens."""
    gen = torch.Generator().manual_seed(seed)
    logits = (
        torch.randn(rows, vocab_size, generator=gen)
        * torch.tensor([0.1, 1.0, 4.0, 12.0])[torch.arange(rows) % 4, None]
    )
    logits[1::3] = (logits[1::3] * 4).round() / 4
    if vocab_size > 2:
        logits[2::5, : vocab_size // 2] = -torch.inf
    return logits


@pytest.mark.parametrize("vocab_size", [1, 2, 63, 64, 65, 1000, 2048, 2049, 5000, 20_001])
def test_twins_agree_on_mixed_rows(vocab_size: int, cpu: OpSet, reference: OpSet) -> None:
    rows = 200
    logits, params = mixed_logits(rows, vocab_size, vocab_size), mixed(rows, vocab_size)
    uniforms = torch.rand(rows, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    assert torch.equal(sample(cpu, logits, uniforms, params), sample(reference, logits, uniforms, params))
    assert torch.equal(logits, before), "sampling must leave its input alone"


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("vocab_size", [260, 5000])
def test_a_row_is_the_same_in_any_batch(vocab_size: int, num_threads: int, cpu: OpSet) -> None:
    torch.set_num_threads(num_threads)
    rows = 60
    logits, params = mixed_logits(rows, vocab_size, 3), mixed(rows, 3)
    uniforms = torch.rand(rows, generator=torch.Generator().manual_seed(2))

    def run(part: Tensor) -> Tensor:
        top_k, top_p, min_p = params.top_k[part], params.top_p[part], params.min_p[part]
        flags = bool(top_k.any()), bool((top_p < 1).any()), bool(min_p.any())
        of_part = SamplingTensors(params.temperature[part], top_k, top_p, min_p, *flags)
        return sample(cpu, logits[part], uniforms[part], of_part)

    whole = run(torch.arange(rows))
    for row in range(rows):
        assert run(torch.tensor([row])) == whole[row], f"row {row} alone"
    for size in (2, 7, 33):
        part = torch.randperm(rows, generator=torch.Generator().manual_seed(size))[:size]
        assert torch.equal(run(part), whole[part]), f"rows {part.tolist()}"


@pytest.mark.parametrize("filters", [{"top_k": 3000}, {"top_p": 0.9}, {"min_p": 0.5}, {}], ids=str)
def test_wide_draws_follow_the_filtered_distribution(filters: dict[str, float], cpu: OpSet) -> None:
    """Each of 5,000 tokens belongs to one of ten levels of probability; draws are counted by level."""
    rows, vocab_size = 4_000, 5_000
    level = torch.arange(vocab_size) % 10
    logits = (level * 0.1).expand(rows, -1).contiguous()
    uniforms = uniform(cpu, torch.full((rows,), 5), torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    drawn = sample(cpu, logits, uniforms, params(rows, **filters))
    weights = [math.exp(i * 0.1) for i in range(10)]
    kept = {"top_k": 4, "top_p": 1, "min_p": 10 + math.ceil(10 * math.log(0.5)) - 1}
    first = min((kept[name] for name in filters), default=0)
    weights = [weight if i >= first else 0.0 for i, weight in enumerate(weights)]
    assert_follows(level[drawn].tolist(), [weight / sum(weights) for weight in weights])


def test_tokens_of_equal_logits_stay_together(ops: OpSet) -> None:
    vocab_size = 3000
    logits = torch.zeros(3, vocab_size)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-24])
    for filters in ({"top_k": 2}, {"top_p": 0.1}, {"min_p": 1.0}, {"top_k": 2, "top_p": 0.1, "min_p": 1.0}):
        drawn = sample(ops, logits, uniforms, params(3, **filters)).tolist()
        assert drawn == [0, vocab_size // 2, vocab_size - 1], filters


def test_ends_of_the_unit_interval_draw_tokens_that_are_kept(ops: OpSet) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, -1).contiguous()
    uniforms: Tensor = torch.tensor([0.0, 1 - 2**-24])
    assert sample(ops, logits, uniforms, params(2)).tolist() == [1, 2]


def test_a_top_p_that_underflows_keeps_the_most_probable(ops: OpSet) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    underflown = params(1, top_p=1e-50)  # 0 as a float32
    for u in (0.0, 0.5, 0.999):
        assert sample(ops, logits, torch.tensor([u]), underflown).tolist() == [1]


@pytest.mark.parametrize("vocab_size", [1, 5, 300, 5000])
def test_a_row_whose_greatest_is_not_finite_gets_a_token_of_the_vocabulary(
    vocab_size: int, ops: OpSet
) -> None:
    logits = mixed_logits(40, vocab_size, 5)
    logits[::4, vocab_size // 2] = torch.nan
    logits[1::4] = -torch.inf
    logits[2::4, vocab_size // 3 :] = torch.inf
    finite = torch.arange(40) % 4 == 3
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(3))
    uniforms[:8] = 1 - 2**-24
    alone = mixed_logits(40, vocab_size, 5)
    for filters in (params(40), params(40, top_k=3), params(40, top_p=0.9), mixed(40, 5)):
        drawn = sample(ops, logits, uniforms, filters)
        assert ((drawn >= 0) & (drawn < vocab_size)).all()
        expected = sample(ops, alone, uniforms, filters)
        assert torch.equal(drawn[finite], expected[finite]), "neighbours changed"
