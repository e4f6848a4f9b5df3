"""A grammar's bits on logits."""

from __future__ import annotations

import pytest
import torch

from kernels.mask import TokenMasks, apply_bitmask
from kernels.opset import OpSet


@pytest.fixture(params=["cpu", "torch_cpu", "reference"])
def ops(request: pytest.FixtureRequest) -> OpSet:
    return request.getfixturevalue(request.param)


def packed(allowed: torch.Tensor) -> torch.Tensor:
    """[M, V] booleans as the words of llguidance, bits past the vocabulary set."""
    rows, vocab_size = allowed.shape
    words = torch.zeros(rows, -(-vocab_size // 32), dtype=torch.int64)
    for token in range(words.shape[1] * 32):
        bit = allowed[:, token] if token < vocab_size else torch.ones(rows, dtype=torch.bool)
        words[:, token // 32] |= bit.long() << (token % 32)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


@pytest.mark.parametrize("vocab_size", [1, 7, 31, 32, 33, 64, 1000, 50_001])
def test_only_tokens_whose_bit_is_set_stay(vocab_size: int, ops: OpSet) -> None:
    gen = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(6, vocab_size, generator=gen)
    index = torch.tensor([4, 0, 3])
    allowed = torch.rand(3, vocab_size, generator=gen) < 0.5
    expected = logits.clone()
    expected[index] = expected[index].masked_fill(~allowed, -torch.inf)
    apply_bitmask(ops, logits, TokenMasks(index, packed(allowed)))
    assert torch.equal(logits, expected)


def test_a_mask_of_too_few_words_is_refused(ops: OpSet) -> None:
    with pytest.raises(AssertionError, match="bits"):
        apply_bitmask(
            ops, torch.zeros(1, 33), TokenMasks(torch.tensor([0]), torch.zeros(1, 1, dtype=torch.int32))
        )


def test_what_is_not_a_number_is_masked_too(ops: OpSet) -> None:
    """A broken row is said to be broken by its raw logits; a mask has the last word on what it hides."""
    logits = torch.full((1, 40), torch.inf)
    apply_bitmask(ops, logits, TokenMasks(torch.tensor([0]), torch.tensor([[0, -1]], dtype=torch.int32)))
    assert not logits[0, :32].isfinite().any()
    assert (logits[0, 32:] == torch.inf).all()
