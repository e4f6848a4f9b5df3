"""Log-probabilities of sampled tokens and of prompts, as they cross the engine's border."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
import torch

from engine.logprobs import LOWEST, prompt_logprobs
from engine.request import TokenLogprobs
from kernels.opset import OpSet, load_op_set
from tests.engine.sampling import Row, params_of, sample_rows

LOGITS = (1.0, 2.0, -0.5, 1.5, 2.0, -1.0, 0.8, 1.1)
LOGPROBS = torch.tensor(LOGITS, dtype=torch.float64).log_softmax(0).tolist()
BY_RANK = [1, 4, 3, 7, 0, 6, 2, 5]


@pytest.fixture(scope="module", params=["cpu", "reference"])
def ops(request: pytest.FixtureRequest) -> OpSet:
    return load_op_set(request.param)


def check(found: TokenLogprobs, token: int, num_top: int) -> None:
    assert found.logprob == pytest.approx(LOGPROBS[token], abs=1e-6)
    assert found.rank == BY_RANK.index(token) + 1
    assert [token for token, _ in found.top] == BY_RANK[:num_top]
    assert [value for _, value in found.top] == pytest.approx(
        [LOGPROBS[token] for token in BY_RANK[:num_top]], abs=1e-6
    )


def test_each_row_has_as_many_as_it_asked_for(ops: OpSet) -> None:
    wishes = [3, None, 0, 8, 20, 1, None]
    rows = [Row(LOGITS, params_of(seed=seed, logprobs=wish)) for seed, wish in enumerate(wishes)]
    result = sample_rows(ops, rows)
    assert sorted(result.logprobs) == [i for i, wish in enumerate(wishes) if wish is not None]
    for i, found in result.logprobs.items():
        check(found, result.tokens[i], wishes[i] or 0)


def test_they_are_those_of_the_raw_logits(ops: OpSet) -> None:
    """As vLLM's `raw_logprobs`: before masks, biases, penalties, temperature and filters."""
    row = Row(LOGITS, params_of(temperature=0.0, logprobs=2), (0,), (1, 1))
    changed = [
        replace(row, params=params_of(temperature=0.0, logprobs=2, **settings))
        for settings in (
            {"allowed_token_ids": (5,)},
            {"bad_words": ((1,), (4,))},
            {"logit_bias": {2: 100.0}},
            {"repetition_penalty": 3.0, "frequency_penalty": 2.0, "presence_penalty": 2.0},
        )
    ]
    rows = [
        *changed,
        replace(row, allowed=frozenset({6})),
        replace(row, params=params_of(top_k=1, logprobs=2)),
    ]
    result = sample_rows(ops, rows)
    assert result.tokens[:5] == [5, 3, 2, 4, 6]
    assert result.tokens[5] in (1, 4), "equally likely: both are among the first one"
    for i, token in enumerate(result.tokens):
        check(result.logprobs[i], token, 2)


def test_of_a_prompt(ops: OpSet) -> None:
    targets = torch.tensor([5, 1, 4, 0])
    found = prompt_logprobs(ops, torch.tensor([LOGITS] * 4), targets, 3)
    assert len(found) == 4
    for each, token in zip(found, targets.tolist(), strict=True):
        check(each, token, 3)
    assert prompt_logprobs(ops, torch.empty(0, 8), torch.empty(0, dtype=torch.int64), 3) == []


def test_what_cannot_come_is_finite_or_left_out(ops: OpSet) -> None:
    """JSON has no infinity, and msgspec would write null."""
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]])
    found = prompt_logprobs(ops, logits, torch.tensor([3]), 4)[0]
    assert found.logprob == LOWEST
    assert found.rank == 4
    assert [token for token, _ in found.top] == [0, 2]
    assert b"null" not in msgspec.json.encode(found)


def test_a_broken_row_of_a_prompt_leaves_the_others_alone(ops: OpSet) -> None:
    logits = torch.tensor([LOGITS, [math.nan] * 8, LOGITS])
    found = prompt_logprobs(ops, logits, torch.tensor([2, 2, 2]), 2)
    assert math.isnan(found[1].logprob)
    check(found[0], 2, 2)
    check(found[2], 2, 2)
