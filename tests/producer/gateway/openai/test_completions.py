"""Text completions by OpenAI's client."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import Completion

from penstock.messages import Completion as MadeText
from penstock.messages import Done, TokenLogprob, Usage
from producer.gateway.openai.completion_reply import text_completion
from producer.gateway.openai.form import CompletionForm
from tests.producer.gateway.openai.frames import read_frames
from tests.producer.gateway.openai.talking import MODEL, Talk, strictly


async def test_choices_are_numbered_by_prompt_and_then_by_sample(talk: Talk) -> None:
    request = {"model": MODEL, "prompt": ["a", "bc"], "n": 2, "max_tokens": 5}
    reply = await talk.http.post("/v1/completions", json=request)
    found = strictly(Completion, reply.content)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in found.choices] == [
        (index, "Hello", "length") for index in range(4)
    ]
    assert found.id == f"cmpl-{reply.headers['x-request-id']}"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 20)
    assert found.choices[0].logprobs is None


@pytest.mark.parametrize("prompt", ["ab", ["ab"], [97, 98], [[97, 98]]])
async def test_a_prompt_in_each_of_its_forms(talk: Talk, prompt: Any) -> None:
    found = await talk.openai.completions.create(model=MODEL, prompt=prompt, echo=True)
    assert [choice.text for choice in found.choices] == ["abHello there, fri"]  # 16 tokens by default
    assert found.choices[0].finish_reason == "length"


async def test_echo_with_logprobs_tells_of_the_prompt_as_evaluation_harnesses_read_it(talk: Talk) -> None:
    found = await talk.openai.completions.create(
        model=MODEL, prompt=[[97, 98, 99], [98, 99]], echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    first, second = found.choices
    assert first.text == "abcH"
    assert first.logprobs is not None
    assert first.logprobs.tokens == ["a", "b", "c", "H"]
    assert first.logprobs.text_offset == [0, 1, 2, 3]
    assert first.logprobs.token_logprobs == [None, -98 / 64, -99 / 64, -72 / 64]
    assert first.logprobs.top_logprobs == [None, {"b": -98 / 64}, {"c": -99 / 64}, {"H": -72 / 64}]
    assert second.logprobs is not None
    assert second.logprobs.tokens == ["b", "c", "H"]


async def test_no_tokens_score_the_prompt(talk: Talk) -> None:
    found = await talk.openai.completions.create(
        model=MODEL, prompt="abc", echo=True, logprobs=2, max_tokens=0, temperature=0
    )
    (choice,) = found.choices
    assert choice.text == "abc"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, -98 / 64, -99 / 64]
    assert choice.logprobs.top_logprobs == [
        None,
        {"b": -98 / 64, "</s>": -9999.0},
        {"c": -99 / 64, "</s>": -9999.0},
    ]
    assert found.usage is not None
    assert found.usage.completion_tokens == 0


async def test_a_stream_of_several_prompts(talk: Talk) -> None:
    stream = await talk.openai.completions.create(
        model=MODEL,
        prompt=["a", "b"],
        n=2,
        max_tokens=30,
        logprobs=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, ends = dict.fromkeys(range(4), ""), dict[int, str]()
    offsets = {index: list[int]() for index in range(4)}
    chunks = [chunk async for chunk in stream]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        if choice.logprobs is not None:
            offsets[choice.index] += choice.logprobs.text_offset or []
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == dict.fromkeys(range(4), "Hello there, friend.")
    assert ends == dict.fromkeys(range(4), "stop")
    assert offsets[3] == list(range(21))
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 84


async def test_a_stream_of_one_prompt_can_be_taken_up_again(talk: Talk) -> None:
    request = {"model": MODEL, "prompt": "a", "stream": True}
    whole = await read_frames(talk.http, "/v1/completions", request)
    rest = await read_frames(talk.http, "/v1/completions", request, after=whole[0].id)
    assert rest == whole[1:]
    several = request | {"prompt": ["a", "b"]}
    assert {frame.id for frame in await read_frames(talk.http, "/v1/completions", several)} == {None}
    headers = {"Last-Event-ID": whole[0].id or ""}
    assert (await talk.http.post("/v1/completions", json=several, headers=headers)).status_code == 400


async def test_one_bad_prompt_of_several_fails_the_request(talk: Talk) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        await talk.openai.completions.create(model=MODEL, prompt=["a", "x" * 600])
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("as_token_ids", [False, True])
def test_offsets_are_in_the_text_which_leaves_the_token_out_that_begins_it(as_token_ids: bool) -> None:
    ended = Done(
        outputs=[
            MadeText(
                text="c",
                finish_reason="length",
                logprobs=[TokenLogprob(token_id=9, rank=1, token="c", logprob=-1)],
            )
        ],
        usage=Usage(prompt_tokens=3, completion_tokens=1),
        model="m",
        prompt="ab",
        prompt_token_ids=[1, 5, 6],
        prompt_tokens=["<s>", "a", "b"],
        prompt_logprobs=[
            TokenLogprob(token_id=9, rank=1, token="a", logprob=-1),
            TokenLogprob(token_id=9, rank=1, token="b", logprob=-1),
        ],
    )
    form = CompletionForm(echo=True, logprobs=0, as_token_ids=as_token_ids)
    (choice,) = text_completion(form, [("standard.1763820000000-0", ended)]).choices
    assert choice.text == "abc"
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == [0, 0, 1, 2]
