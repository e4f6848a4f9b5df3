"""Log-probabilities, scores and vectors, as vLLM documents them and transformers computes them.

Quotations are from the docstrings of vLLM's `SamplingParams` and `Logprob` and from its page on pooling
models (docs.vllm.ai: api/vllm/sampling_params, api/vllm/logprobs, models/pooling_models).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from penstock.messages import Completion, Done, Job, TokenLogprob
from penstock.sampling import PoolingParams, SamplingParams
from tests.consumer.in_process import TINY, InProcess

SUM = "What is 12 + 7?"
JSON = "Name and age as JSON: Chen is 66 years old."
TEXTS = (SUM, JSON, "What is the capital of France?Paris", "naïve — 東京")
NEAR = 1e-3


@pytest.fixture(scope="module")
def tiny() -> InProcess:
    return InProcess()


@pytest.fixture(scope="module")
def reference() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def prompt_ids(tiny: InProcess, text: str) -> list[int]:
    return tiny.served.tokenizer.encode(Job(prompt=text), 500).token_ids


@torch.inference_mode()
def expected_logprobs(reference: Any, token_ids: list[int]) -> Tensor:
    """[T - 1, V]: of each token but the first, given those before it."""
    logits = reference(torch.tensor([token_ids])).logits[0, :-1]
    return logits.float().log_softmax(-1)


def check(found: list[TokenLogprob], token_ids: list[int], expected: Tensor, num_top: int) -> None:
    """Each token's, its rank, and the most likely ones, against the whole distribution."""
    assert [one.token_id for one in found] == token_ids
    for one, row in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token_id]), abs=NEAR)
        assert int((row > one.logprob + NEAR).sum()) < one.rank <= int((row > one.logprob - NEAR).sum()) + 1
        top = one.top_logprobs
        assert len(top) == num_top
        assert [t.logprob for t in top] == sorted((t.logprob for t in top), reverse=True)
        assert [t.logprob for t in top] == pytest.approx(row.topk(num_top).values.tolist(), abs=NEAR)
        for t in top:
            assert t.logprob == pytest.approx(float(row[t.token_id]), abs=NEAR)
        if one.rank <= num_top:
            assert top[one.rank - 1].logprob == one.logprob
            assert one.token_id in {t.token_id for t in top}


CHANGED: dict[str, Any] = {
    "temperature": 2.0,
    "seed": 6,
    "max_tokens": 20,
    "top_k": 5,
    "repetition_penalty": 1.5,
    "presence_penalty": 1.0,
    "logit_bias": {77: 5.0},
    "bad_words": ["6"],
    "min_tokens": 10,
}


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 3.0, "seed": 5, "max_tokens": 20, "ignore_eos": True},
        CHANGED,
    ],
)
@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_logprobs_are_the_models_own(
    num_top: int, params: dict[str, Any], tiny: InProcess, reference: Any
) -> None:
    """logprobs: "the result includes the log probabilities of the specified number of most likely tokens, as
    well as the chosen tokens. […] The API will always return the log probability of the sampled token".
    rank: "The vocab rank of chosen token (>=1)". By default (`raw_logprobs`) they are those before any
    penalty, mask and temperature."""
    output = tiny.ask(JSON, logprobs=num_top, **params)
    assert output.token_ids is not None
    assert output.logprobs is not None
    asked = prompt_ids(tiny, JSON)
    expected = expected_logprobs(reference, asked + output.token_ids)[len(asked) - 1 :]
    check(output.logprobs, output.token_ids, expected, num_top)
    if params["temperature"] == 0:
        assert {one.rank for one in output.logprobs} == {1}
    else:
        assert max(one.rank for one in output.logprobs) > 1
    for one in output.logprobs:
        assert one.token == tiny.served.tokenizer.tokenizer.decode([one.token_id], skip_special_tokens=False)


def test_logprobs_are_none_unless_asked_for_and_change_nothing(tiny: InProcess) -> None:
    """logprobs: "When set to `None`, no probability is returned." """
    hot: dict[str, Any] = {"temperature": 2.0, "seed": 1, "max_tokens": 12}
    without, with_some = tiny.ask(JSON, **hot), tiny.ask(JSON, logprobs=3, prompt_logprobs=2, **hot)
    assert without.logprobs is None
    assert without.token_ids == with_some.token_ids


def test_logprobs_of_every_sample_and_up_to_its_stop_string(tiny: InProcess, reference: Any) -> None:
    """logprobs: they are "per output token", of each output, and of the tokens that are returned alone."""
    asked = prompt_ids(tiny, JSON)
    outputs: list[Completion] = tiny.ask_all(
        JSON, n=4, temperature=3.5, seed=2, stop=["e", "6", "D"], logprobs=2, max_tokens=15
    )
    assert len({tuple(output.token_ids or ()) for output in outputs}) > 1
    assert "stop" in {output.finish_reason for output in outputs}
    for output in outputs:
        assert output.token_ids is not None
        assert output.logprobs is not None
        expected = expected_logprobs(reference, asked + output.token_ids)[len(asked) - 1 :]
        check(output.logprobs, output.token_ids, expected, 2)


@pytest.mark.parametrize("num_top", [0, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_prompt_logprobs(n: int, num_top: int, tiny: InProcess, reference: Any) -> None:
    """prompt_logprobs: "Number of log probabilities to return per prompt token"; the first token has none
    ("logprob of first prompt token is None")."""
    for text in TEXTS:
        params = SamplingParams(n=n, prompt_logprobs=num_top, max_tokens=3)
        (done,) = tiny.answer(Job(prompt=text, sampling_params=params))
        asked = prompt_ids(tiny, text)
        assert done.prompt_logprobs is not None
        check(done.prompt_logprobs, asked[1:], expected_logprobs(reference, asked), num_top)
        assert len(done.outputs) == n


def test_a_score_is_the_texts_likelihood(tiny: InProcess, reference: Any) -> None:
    """The sum of the prompt's log-probabilities, as one adds up vLLM's prompt_logprobs of a request whose
    output is thrown away."""
    for num_top in (None, 3):
        params = SamplingParams(prompt_logprobs=num_top)
        jobs = [Job(prompt=text, kind="score", sampling_params=params) for text in TEXTS]
        for text, done in zip(TEXTS, tiny.answer(*jobs), strict=True):
            asked = prompt_ids(tiny, text)
            expected = expected_logprobs(reference, asked)
            score = float(expected.gather(1, torch.tensor(asked[1:])[:, None]).double().sum())
            assert done.score is not None
            assert done.score.logprob == pytest.approx(score, abs=NEAR)
            check(done.score.tokens, asked[1:], expected, num_top or 0)
            assert (done.outputs, done.usage.completion_tokens) == ([], 0)


def embed(tiny: InProcess, text: str, **pooling: Any) -> tuple[Tensor, Done]:
    (done,) = tiny.answer(Job(prompt=text, kind="embed", pooling_params=PoolingParams(**pooling)))
    assert done.embedding is not None
    return torch.tensor(done.embedding), done


def test_embeddings_are_pooled_hidden_states(tiny: InProcess, reference: Any) -> None:
    """ "Embedding: Extract only the hidden states corresponding to the last token, and apply normalization";
    and the mean over all tokens, where a job asks for it."""
    for text in TEXTS:
        asked = prompt_ids(tiny, text)
        with torch.inference_mode():
            hidden = reference.model(torch.tensor([asked])).last_hidden_state[0]
        for pooling, expected in (("last", hidden[-1]), ("mean", hidden.mean(0))):
            raw, done = embed(tiny, text, pooling=pooling, normalize=False)
            torch.testing.assert_close(raw, expected, atol=NEAR, rtol=NEAR)
            unit, _ = embed(tiny, text, pooling=pooling)
            assert float(unit.norm()) == pytest.approx(1, abs=1e-5)
            torch.testing.assert_close(unit, expected / expected.norm(), atol=NEAR, rtol=NEAR)
            assert (done.outputs, done.usage.prompt_tokens) == ([], len(asked))
        torch.testing.assert_close(embed(tiny, text)[0], hidden[-1] / hidden[-1].norm(), atol=NEAR, rtol=NEAR)
