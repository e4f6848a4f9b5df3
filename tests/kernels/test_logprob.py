"""Log-probabilities, ranks and the most likely tokens."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.logprob import TopLogprobs, top_logprobs
from kernels.opset import OpSet
from tests.kernels.test_sample import mixed_logits


@pytest.fixture(params=["cpu", "torch_cpu", "reference"])
def ops(request: pytest.FixtureRequest) -> OpSet:
    return request.getfixturevalue(request.param)


def test_values(ops: OpSet) -> None:
    probabilities = [0.1, 0.4, 0.2, 0.3]
    logits = torch.tensor([probabilities]).log().repeat(4, 1) + 7
    found = top_logprobs(ops, logits, torch.arange(4), 2)
    assert found.ranks.tolist() == [4, 1, 3, 2]
    assert found.top_ids.tolist() == [[1, 3]] * 4
    assert found.chosen.tolist() == pytest.approx([math.log(p) for p in probabilities], abs=1e-6)
    assert found.top[0].tolist() == pytest.approx([math.log(0.4), math.log(0.3)], abs=1e-6)


def test_of_equal_logits_the_lower_id_comes_first(ops: OpSet) -> None:
    logits = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]])
    for num_top, ids in ((0, []), (1, [1]), (2, [1, 3]), (4, [1, 3, 5, 0]), (6, [1, 3, 5, 0, 2, 4])):
        assert top_logprobs(ops, logits, torch.tensor([2]), num_top).top_ids.tolist() == [ids]
    ranks = top_logprobs(ops, logits.repeat(6, 1), torch.arange(6), 0).ranks.tolist()
    assert ranks == [4, 1, 5, 2, 6, 3]


@pytest.mark.parametrize(
    ("vocab_size", "num_top"), [(1, 3), (5, 5), (63, 4), (1000, 20), (5000, 0), (5000, 7), (20_001, 20)]
)
def test_twins_agree(vocab_size: int, num_top: int, cpu: OpSet, reference: OpSet) -> None:
    gen = torch.Generator().manual_seed(vocab_size)
    logits = mixed_logits(60, vocab_size, 1)
    chosen = logits.exp().clamp(max=1e30).multinomial(1, generator=gen)[:, 0]
    got, expected = (top_logprobs(ops, logits, chosen, num_top) for ops in (cpu, reference))
    assert torch.equal(got.ranks, expected.ranks)
    assert torch.equal(got.top_ids, expected.top_ids)
    torch.testing.assert_close(got.chosen, expected.chosen, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(got.top, expected.top, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("vocab_size", [1, 33, 64, 260, 5000, 70_001])
def test_a_row_has_the_same_bits_in_any_batch(vocab_size: int, num_threads: int, cpu: OpSet) -> None:
    torch.set_num_threads(num_threads)
    logits = mixed_logits(40, vocab_size, 4)
    chosen = torch.randint(0, vocab_size, (40,), generator=torch.Generator().manual_seed(0))

    def run(part: slice) -> TopLogprobs:
        return top_logprobs(cpu, logits[part], chosen[part], 5)

    whole = run(slice(0, 40))
    for part in (slice(0, 1), slice(39, 40), slice(3, 5), slice(1, 34)):
        alone = run(part)
        for name in ("chosen", "ranks", "top_ids", "top"):
            assert torch.equal(getattr(alone, name), getattr(whole, name)[part]), (name, part)


def test_a_row_that_is_not_finite_has_nan_and_harms_nobody(ops: OpSet) -> None:
    logits = mixed_logits(6, 1100, 2)
    chosen = torch.tensor([5, 1000, 7, 9, 11, 1099])
    expected = top_logprobs(ops, logits, chosen, 4)
    poisoned = logits.clone()
    poisoned[0, 900], poisoned[2], poisoned[4, 5] = torch.nan, -torch.inf, torch.inf
    got = top_logprobs(ops, poisoned, chosen, 4)
    assert not got.chosen[::2].isfinite().any()
    assert not got.top[::2].isfinite().any()
    assert ((got.top_ids >= 0) & (got.top_ids < 1100)).all()
    for name in ("chosen", "ranks", "top_ids", "top"):
        assert torch.equal(getattr(got, name)[1::2], getattr(expected, name)[1::2]), name
