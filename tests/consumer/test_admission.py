"""What a job's parameters become for the engine, and what is refused, in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from consumer.admission import Admission, JobRefused
from consumer.defaults import Defaults
from engine.request import RepetitionDetection, Request, RequestParams, refusal
from penstock.messages import Failed, Job, PoolingParams, SamplingParams, decode_event
from tests.consumer.models import save_model
from tests.consumer.served import VOCAB_SIZE, WINDOW, make_lease, make_served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path)


def admit(folder: Path, job: Job, **defaults: Any) -> Request:
    admission = Admission(make_served(folder, **defaults))
    request = admission.admit(make_lease(job), []).remaining()
    assert refusal(request, WINDOW, VOCAB_SIZE) is None, "what is admitted, the engine takes"
    return request


def params(folder: Path, defaults: dict[str, Any] | None = None, **fields: Any) -> RequestParams:
    return admit(
        folder, Job(prompt="0123456789", sampling_params=SamplingParams(**fields)), **defaults or {}
    ).params


def refused(folder: Path, job: Job, **defaults: Any) -> Failed:
    with pytest.raises(JobRefused) as caught:
        admit(folder, job, **defaults)
    failed = decode_event(caught.value.ending.terminal)
    assert isinstance(failed, Failed)
    return failed


def words(folder: Path, defaults: dict[str, Any] | None = None, **fields: Any) -> str:
    job = Job(prompt="0123456789", sampling_params=SamplingParams(**fields))
    failed = refused(folder, job, **defaults or {})
    assert failed.error.type == "invalid_job"
    return failed.error.message


def test_every_parameter_reaches_the_engine(folder: Path) -> None:
    given: dict[str, Any] = {
        "max_tokens": 20,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 7,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.25,
        "repetition_penalty": 1.5,
        "logit_bias": {5: -1.0},
        "logprobs": 2,
        "prompt_logprobs": 1,
        "ignore_eos": True,
    }
    lists = {"stop_token_ids": [3], "allowed_token_ids": [4, 5]}
    detection = {"max_pattern_size": 4, "min_pattern_size": 2, "min_count": 3}
    job = Job(
        prompt="x",
        sampling_params=SamplingParams(
            **given,
            **lists,
            bad_words=["no"],
            repetition_detection=detection,
            n=3,  # type: ignore[arg-type] - as JSON
        ),
    )
    request = admit(folder, job)
    expected = RequestParams(
        **given,
        **{name: tuple(ids) for name, ids in lists.items()},  # type: ignore[arg-type] - by name
        bad_words=((110, 111),),
        repetition=RepetitionDetection(**detection),
    )
    assert request.params == expected
    assert [sample.index for sample in request.samples] == [0, 1, 2]
    unused = {"grammar", "pooling", "normalize"}
    same = {name for name in RequestParams.__struct_fields__ if name not in unused}
    neutral = RequestParams(max_tokens=1, seed=0)
    assert all(getattr(request.params, name) != getattr(neutral, name) for name in same), "none is left out"


def test_a_jobs_value_comes_before_the_models_default_and_that_before_the_neutral_one(folder: Path) -> None:
    defaults = {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
    neutral = params(folder)
    ours = params(folder, defaults)
    mine = params(folder, defaults, temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0)
    for name, value in defaults.items():
        assert getattr(ours, name) == value
        assert getattr(mine, name) == getattr(neutral, name) == getattr(Defaults(), name)


def test_max_tokens_are_the_jobs_the_models_or_what_the_window_holds(folder: Path) -> None:
    # As vLLM has it: `max_new_tokens` of generation_config.json is for jobs without a `max_tokens`.
    assert params(folder).max_tokens == 30
    assert params(folder, max_tokens=7).max_tokens == 7
    assert params(folder, max_tokens=99).max_tokens == 30
    assert params(folder, {"max_tokens": 5}).max_tokens == 5
    assert params(folder, {"max_tokens": 5}, max_tokens=7).max_tokens == 7
    assert params(folder, {"max_tokens": 99}).max_tokens == 30


def test_min_tokens_that_cannot_be_are_refused(folder: Path) -> None:
    assert params(folder, min_tokens=30).min_tokens == 30
    assert words(folder, min_tokens=31) == "`min_tokens` is 31; the prompt leaves room for 30 tokens"
    assert "room for 30" in words(folder, min_tokens=31, max_tokens=50)
    assert words(folder, {"max_tokens": 5}, min_tokens=6) == (
        "`min_tokens` is 6; the model's own `max_tokens` is 5, where a job has none"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("logit_bias", {1: 1.0, 300: 1.0}), ("stop_token_ids", [300, 1]), ("allowed_token_ids", [1, 300])],
)
def test_token_ids_outside_the_vocabulary_are_named(folder: Path, name: str, value: Any) -> None:
    assert words(folder, **{name: value}) == f"`{name}` has 300; this model's ids go from 0 to 299"


# Bad words as vLLM tokenizes them: as a text begins, and behind a space where that is another token.


def word_tokenizer(folder: Path) -> None:
    """Words are tokens, with and without a space before them."""
    vocab = {"no": 0, "▁no": 1, "way": 2, "▁way": 3, "▁": 4, "x": 5, "[UNK]": 6}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("word", "sequences"),
    [
        ("no", ((0,), (1,))),
        (" no", ((0,), (1,))),
        ("no way", ((0, 3), (1, 3))),
    ],
)
def test_bad_words_are_taken_with_and_without_a_space(
    folder: Path, word: str, sequences: tuple[tuple[int, ...], ...]
) -> None:
    word_tokenizer(folder)
    job = Job(prompt_token_ids=[0], sampling_params=SamplingParams(bad_words=[word]))
    assert admit(folder, job).params.bad_words == sequences


def test_a_bad_word_whose_spaced_form_is_longer_is_taken_once(folder: Path) -> None:
    assert params(folder, bad_words=["no", "a b"]).bad_words == ((110, 111), (97, 32, 98))


def test_a_blank_bad_word_is_refused(folder: Path) -> None:
    assert words(folder, bad_words=["no", " "]) == (
        "`bad_words` has ' ', which is no word to this model's tokenizer"
    )


# The other kinds of job.


@pytest.mark.parametrize("kind", ["score", "embed"])
def test_what_generates_nothing_may_fill_the_window(folder: Path, kind: Any) -> None:
    request = admit(folder, Job(prompt_token_ids=[1] * WINDOW, kind=kind))
    assert (request.kind, request.params.max_tokens, len(request.samples)) == (kind, 0, 1)
    too_long = Job(prompt_token_ids=[1] * (WINDOW + 1), kind=kind)
    assert refused(folder, too_long).error.type == "prompt_too_long"
    generating = Job(prompt_token_ids=[1] * WINDOW)
    assert refused(folder, generating).error.type == "prompt_too_long"


def test_a_score_asks_for_the_prompts_log_probabilities(folder: Path) -> None:
    assert admit(folder, Job(prompt="x", kind="score")).params.prompt_logprobs == 0
    wanted = SamplingParams(prompt_logprobs=3)
    assert admit(folder, Job(prompt="x", kind="score", sampling_params=wanted)).params.prompt_logprobs == 3
    assert admit(folder, Job(prompt="x", kind="embed")).params.prompt_logprobs is None


def test_pooling_reaches_the_engine(folder: Path) -> None:
    wanted = admit(folder, Job(prompt="x", kind="embed")).params
    assert (wanted.pooling, wanted.normalize) == ("last", True)
    pooling = PoolingParams(pooling="mean", normalize=False)
    wanted = admit(folder, Job(prompt="x", kind="embed", pooling_params=pooling)).params
    assert (wanted.pooling, wanted.normalize) == ("mean", False)


def test_nobody_answers_messages_that_are_scored_or_embedded(folder: Path) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    texts = {
        kind: bytes(admit(folder, Job(messages=messages, kind=kind)).prompt_token_ids)
        for kind in ("generate", "score", "embed")
    }
    assert texts == {"generate": b"<user>x<assistant>", "score": b"<user>x", "embed": b"<user>x"}
