"""Prompts to token ids: raw text, chat messages through the template, ids as given; defaults of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from consumer.defaults import Defaults, InvalidDefaults
from consumer.tokenizer import PromptTokenizer, PromptTooLong, TokenizerMissing
from penstock.errors import InvalidJob
from penstock.messages import Job, Message, SamplingParams, TextPart
from tests.consumer.models import BOS, save_model


@pytest.fixture
def tokenizer(tmp_path: Path) -> PromptTokenizer:
    return PromptTokenizer(save_model(tmp_path), vocab_size=258)


def text_of(ids: list[int]) -> str:
    return bytes(ids).decode()


def test_raw_text(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode(Job(prompt="héllo"), 1000).token_ids == list("héllo".encode())


def test_messages_go_through_the_template(tokenizer: PromptTokenizer) -> None:
    parts = [TextPart(text="a"), TextPart(text="b")]
    job = Job(messages=[Message(role="system", content="s"), Message(role="user", content=parts)])
    assert text_of(tokenizer.encode(job, 1000).token_ids) == "<system>s<user>ab<assistant>"


def test_the_template_is_sandboxed_and_its_refusal_is_the_jobs_error(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(InvalidJob, match="no tools here"):
        tokenizer.encode(Job(messages=[Message(role="tool", content="x")]), 1000)


def test_a_template_cannot_reach_python(tmp_path: Path) -> None:
    evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = PromptTokenizer(save_model(tmp_path, template=evil), vocab_size=258)
    with pytest.raises(InvalidJob, match="refuses"):
        tokenizer.encode(Job(messages=[Message(role="user", content="x")]), 1000)


def test_reserved_template_variables_are_refused(tokenizer: PromptTokenizer) -> None:
    job = Job(messages=[Message(role="user", content="x")], chat_template_kwargs={"messages": []})
    with pytest.raises(InvalidJob, match="may not set messages"):
        tokenizer.encode(job, 1000)


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    tokenizer = PromptTokenizer(save_model(tmp_path, template=None), vocab_size=258)
    with pytest.raises(InvalidJob, match="send `prompt`"):
        tokenizer.encode(Job(messages=[Message(role="user", content="x")]), 1000)


def test_token_ids_outside_the_vocabulary_are_named(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode(Job(prompt_token_ids=[0, 257]), 1000).token_ids == [0, 257]
    with pytest.raises(InvalidJob, match="has 258; this model's ids go from 0 to 257"):
        tokenizer.encode(Job(prompt_token_ids=[1, 258]), 1000)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMissing, match=r"no tokenizer\.json"):
        PromptTokenizer(tmp_path, vocab_size=1)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Defaults()),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95}, Defaults(temperature=0.6, top_k=20, top_p=0.95)),
        ({"do_sample": False, "temperature": 0.6}, Defaults(temperature=0.0)),
        ({"do_sample": True, "min_p": None}, Defaults()),
        ({"repetition_penalty": 1.05, "max_new_tokens": 9}, Defaults(repetition_penalty=1.05, max_tokens=9)),
        ({"top_k": -1}, Defaults(top_k=0)),
    ],
)
def test_defaults_come_from_the_generation_config(
    tmp_path: Path, config: dict[str, object], expected: Defaults
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert Defaults.load(tmp_path) == expected


def test_only_what_differs_from_the_neutral_values_is_shown() -> None:
    assert Defaults().stated() == {}
    shown = Defaults(temperature=0.0, top_p=1.0, repetition_penalty=1.05, max_tokens=9).stated()
    assert shown == {"temperature": 0.0, "repetition_penalty": 1.05, "max_tokens": 9}


def test_a_prompt_beyond_the_window_is_refused(tokenizer: PromptTokenizer) -> None:
    assert len(tokenizer.encode(Job(prompt="x" * 8), 8).token_ids) == 8
    with pytest.raises(PromptTooLong, match="has 9 tokens; the model's window takes 8"):
        tokenizer.encode(Job(prompt_token_ids=[1] * 9), 8)


def test_megabytes_beyond_the_window_are_not_tokenized(
    tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "tokenizer", None)
    with pytest.raises(PromptTooLong, match="at least"):
        tokenizer.encode(Job(prompt="x" * 1_000_000), 1000)
    with pytest.raises(PromptTooLong, match="at least"):
        tokenizer.encode(Job(messages=[Message(role="user", content="x" * 1_000_000)]), 1000)


@pytest.mark.parametrize("stated", [{"temperature": -3}, {"top_k": "x"}, {"top_p": 0}, {"max_new_tokens": 0}])
def test_defaults_that_no_job_may_ask_for_are_refused_by_name(tmp_path: Path, stated: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    with pytest.raises(InvalidDefaults, match=r"generation_config\.json: Expected"):
        Defaults.load(tmp_path)


def test_the_last_tokens_are_kept(tokenizer: PromptTokenizer) -> None:
    cut = tokenizer.encode(Job(prompt="abcdef", truncate_prompt_tokens=4), 1000)
    assert (text_of(cut.token_ids), cut.text) == ("cdef", None)
    assert tokenizer.encode(Job(prompt="abc", truncate_prompt_tokens=4), 1000).text == "abc"
    ids = tokenizer.encode(Job(prompt_token_ids=[1, 2, 3], truncate_prompt_tokens=2), 1000).token_ids
    assert ids == [2, 3]
    with pytest.raises(PromptTooLong, match="has 9 tokens"):
        tokenizer.encode(Job(prompt="x" * 20, truncate_prompt_tokens=9), 8)


@pytest.mark.parametrize(
    ("params", "length"),
    [({}, 8), ({"max_tokens": 1}, 8), ({"max_tokens": 5}, 4), ({"min_tokens": 3}, 6), ({"max_tokens": 8}, 1)],
)
def test_what_the_window_holds_is_kept(
    tokenizer: PromptTokenizer, params: dict[str, int], length: int
) -> None:
    job = Job(prompt="x" * 20_000, truncate_prompt_tokens=-1, sampling_params=SamplingParams(**params))
    assert len(tokenizer.encode(job, 8).token_ids) == length  # a window of 9


def test_the_window_may_hold_the_output_alone(tokenizer: PromptTokenizer) -> None:
    job = Job(prompt="x", truncate_prompt_tokens=-1, sampling_params=SamplingParams(max_tokens=9))
    with pytest.raises(InvalidJob, match="no room for a prompt in the model's window of 9"):
        tokenizer.encode(job, 8)
    score = Job(prompt="x" * 20, kind="score", truncate_prompt_tokens=-1)
    assert len(tokenizer.encode(score, 9).token_ids) == 9


def test_special_tokens_are_added_as_asked(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    path = folder / "tokenizer.json"
    whole: Any = Tokenizer.from_file(str(path))
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    whole.save(str(path))
    tokenizer = PromptTokenizer(folder, vocab_size=258)
    chat = {"messages": [Message(role="user", content="x")]}
    for prompt, by_default in (({"prompt": "x"}, True), (chat, False)):
        for wish, added in ((None, by_default), (True, True), (False, False)):
            ids = tokenizer.encode(Job(**prompt, add_special_tokens=wish), 1000).token_ids
            assert (ids[0] == BOS) is added
