"""Triton's Philox, argmax, masks, penalties and log-probabilities against the reference."""

from __future__ import annotations

import pytest
import torch

from kernels.mask import TokenMasks
from kernels.opset import OpSet
from kernels.penalty import SeenTokens
from kernels.triton.argmax import argmax
from kernels.triton.logprob import top_logprobs
from kernels.triton.mask import apply_bitmask
from kernels.triton.penalty import apply_penalties
from kernels.triton.philox import philox, uniform
from tests.kernels.triton.cases_logits import VOCAB_SIZES, masks_of, seen_of
from tests.kernels.triton.cases_sample import logits_of
from tests.kernels.triton.device import DEVICE


@pytest.mark.parametrize("rows", [1, 63, 300])
def test_philox_has_the_reference_s_bits(rows: int, reference: OpSet) -> None:
    generator = torch.Generator().manual_seed(rows)
    key = torch.randint(0, 2**32, (rows, 2), generator=generator).to(DEVICE)
    counter = torch.randint(0, 2**32, (rows, 4), generator=generator).to(DEVICE)
    counter[0], key[0] = 2**32 - 1, 2**32 - 1
    assert torch.equal(philox(key, counter), reference.philox(key, counter))
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator).to(DEVICE)
    index, sample = counter[:, 0].contiguous(), counter[:, 1].contiguous()
    drawn = uniform(seeds, index, sample)
    assert torch.equal(drawn, reference.uniform(seeds, index, sample))
    assert ((drawn >= 0) & (drawn < 1)).all()


def test_philox_has_the_published_words() -> None:
    """kat_vectors of Random123, philox4x32 10: all bits set."""
    ones = torch.full((1, 4), 0xFFFFFFFF, device=DEVICE)
    assert philox(ones[:, :2], ones).tolist() == [[0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_argmax(vocab_size: int, reference: OpSet) -> None:
    logits = logits_of(9, vocab_size, 0)
    assert torch.equal(argmax(logits), reference.argmax(logits))
    assert torch.equal(
        argmax(logits[::2, : max(vocab_size // 2, 1)]), logits[::2, : max(vocab_size // 2, 1)].argmax(1)
    )
    logits[0] = -torch.inf
    logits[1, vocab_size // 2 :] = torch.nan
    logits[2, vocab_size // 3] = torch.inf
    logits[3] = 0.0
    logits[3, : vocab_size // 2] = -0.0
    logits[4, vocab_size // 2] = torch.inf
    logits[4, -1] = -torch.nan
    assert torch.equal(argmax(logits), reference.argmax(logits))


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_masks(vocab_size: int, reference: OpSet) -> None:
    logits = logits_of(6, vocab_size, 1)
    expected = logits.clone()
    masks = masks_of([4, 0, 3], vocab_size, 2)
    reference.apply_bitmask(expected, masks)
    apply_bitmask(logits, masks)
    assert torch.equal(logits, expected)
    apply_bitmask(logits, TokenMasks(masks.index[:0], masks.bits[:0]))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("vocab_size", [1, 63, 257])
def test_penalties_have_the_reference_s_bits(vocab_size: int, reference: OpSet) -> None:
    logits = logits_of(9, vocab_size, 3)
    expected, seen = logits.clone(), seen_of(9, vocab_size, 4)
    reference.apply_penalties(expected, seen)
    apply_penalties(logits, seen)
    assert torch.equal(logits, expected)
    nothing = torch.empty(0, device=DEVICE)
    apply_penalties(logits, SeenTokens(nothing.long(), nothing, nothing, nothing, nothing))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("vocab_size", "num_top"),
    [(size, top) for size, top in zip(VOCAB_SIZES, (1, 20, 20, 5, 20, 20), strict=False)]
    + [(63, 0), (2049, 64), (4097, 65)],
)
def test_log_probabilities(vocab_size: int, num_top: int, reference: OpSet) -> None:
    logits = logits_of(7, vocab_size, 5)
    token_ids = torch.randint(0, vocab_size, (7,), generator=torch.Generator().manual_seed(6)).to(DEVICE)
    token_ids[6] = vocab_size - 1
    got = top_logprobs(logits, token_ids, num_top)
    expected = reference.top_logprobs(logits, token_ids, num_top)
    assert torch.equal(got.ranks, expected.ranks)
    assert torch.equal(got.top_ids, expected.top_ids)
    torch.testing.assert_close(got.chosen, expected.chosen, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(got.top, expected.top, atol=2e-6, rtol=2e-6)


def test_of_equal_logits_the_lower_id_comes_first() -> None:
    logits = torch.zeros(2, 5000, device=DEVICE)
    logits[0, ::2] = -0.0
    logits[1, 130::2] = 1.0
    got = top_logprobs(logits, torch.tensor([4999, 7], device=DEVICE), 20)
    assert got.top_ids.tolist() == [list(range(20)), list(range(130, 170, 2))]
    assert got.ranks.tolist() == [5000, (5000 - 130) // 2 + 8]
