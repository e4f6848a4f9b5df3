"""Chat completions by OpenAI's client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.producer.gateway.openai.talking import HELLO, MODEL, Talk, strictly, talking

GOLDEN = {
    "id": "chatcmpl-JOB",
    "created": 0,
    "model": "scripted",
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there, friend.", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
            "stop_reason": None,
        }
    ],
    "usage": {
        "prompt_tokens": 22,
        "completion_tokens": 21,
        "total_tokens": 43,
        "prompt_tokens_details": {"cached_tokens": 11},
        "completion_tokens_details": {"reasoning_tokens": 0},
    },
    "system_fingerprint": "scripted",
    "service_tier": "default",
}

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
            "strict": True,
        },
    }
]
CALL = 'I look.\n<tool_call>\n{"name": "look", "arguments": {"place": "Bonn"}}\n</tool_call>'


async def told(talk: Talk, **request: Any) -> list[ChatCompletionChunk]:
    """The chunks of a streamed reply."""
    stream = await talk.openai.chat.completions.create(model=MODEL, stream=True, **request)
    return [chunk async for chunk in stream]


async def test_a_reply_has_openais_form_to_the_last_field(talk: Talk) -> None:
    reply = await talk.http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO})
    found = strictly(ChatCompletion, reply.content)
    job_id = reply.headers["x-request-id"]
    assert found.id == f"chatcmpl-{job_id}"
    assert abs(found.created * 1000 - int(job_id.split(".")[1].split("-")[0])) < 1000
    assert reply.json() | {"id": "chatcmpl-JOB", "created": 0} == GOLDEN


async def test_the_client_that_blocks_gets_the_same(talk: Talk) -> None:
    client = talk.sync()
    try:
        found = await asyncio.to_thread(
            lambda: client.chat.completions.create(model=MODEL, messages=HELLO, n=2, user="me", store=False)
        )
        assert [choice.message.content for choice in found.choices] == ["Hello there, friend."] * 2
    finally:
        client.close()


async def test_a_stream_says_role_text_end_and_usage(talk: Talk) -> None:
    chunks = await told(talk, messages=HELLO, n=2, stream_options={"include_usage": True})
    *said, last = chunks
    assert [choice.delta.role for chunk in said[:2] for choice in chunk.choices] == ["assistant"] * 2
    texts = dict.fromkeys(range(2), "")
    ends = dict[int, str]()
    for chunk in said:
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason is not None:
            ends[choice.index] = choice.finish_reason
    assert texts == {0: "Hello there, friend.", 1: "Hello there, friend."}
    assert ends == {0: "stop", 1: "stop"}
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (22, 42)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


async def test_the_usage_so_far_in_every_chunk(talk: Talk) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await told(talk, messages=HELLO, stream_options=options)
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == len(chunks)
    assert (usages[0].prompt_tokens, usages[0].completion_tokens) == (0, 0)  # nothing has run yet
    assert {usage.prompt_tokens for usage in usages[1:]} == {22}
    assert [usage.completion_tokens for usage in usages][-2:] == [21, 21]


async def test_a_stream_is_events_that_openais_types_take_strictly(talk: Talk) -> None:
    request = {"model": MODEL, "messages": HELLO, "stream": True, "logprobs": True}
    reply = await talk.http.post("/v1/chat/completions", json=request)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    chunks = [strictly(ChatCompletionChunk, line.removeprefix("data: ")) for line in lines]
    tokens = [
        token.token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or []
    ]
    assert "".join(tokens) == "Hello there, friend.</s>"
    assert "usage" not in json.loads(lines[0].removeprefix("data: "))


async def test_logprobs_have_bytes_and_the_likeliest(talk: Talk) -> None:
    found = await talk.openai.chat.completions.create(
        model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, max_completion_tokens=2
    )
    (choice,) = found.choices
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [token.token for token in choice.logprobs.content] == ["H", "e"]
    first = choice.logprobs.content[0]
    assert (first.bytes, first.logprob) == ([72], -72 / 64)
    assert [top.token for top in first.top_logprobs] == ["H", "</s>"]
    assert first.top_logprobs[1].logprob == -9999.0


async def test_what_vllm_adds(talk: Talk) -> None:
    extra = {"return_token_ids": True, "prompt_logprobs": 0, "return_tokens_as_token_ids": True}
    found = await talk.openai.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=2, stop=["e"], logprobs=True, extra_body=extra
    )
    raw = found.model_dump()
    (choice,) = raw["choices"]
    assert choice["message"]["content"] == "H"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "e")
    assert choice["token_ids"] == [72, 101]  # the stop string is cut from the text alone
    assert bytes(raw["prompt_token_ids"]) == b"<user>Hello<assistant>"
    assert [token["token"] for token in choice["logprobs"]["content"]] == ["token_id:72", "token_id:101"]
    first, second, *_ = raw["prompt_logprobs"]
    assert first is None
    assert second["117"]["decoded_token"] == "u"


async def test_echo_gives_the_beginning_of_the_answer_back(talk: Talk) -> None:
    messages: list[Any] = [*HELLO, {"role": "assistant", "content": "I say: "}]
    extra = {"echo": True, "continue_final_message": True, "add_generation_prompt": False}
    found = await talk.openai.chat.completions.create(model=MODEL, messages=messages, extra_body=extra)
    assert found.choices[0].message.content == "I say: Hello there, friend."
    chunks = await told(talk, messages=messages, extra_body=extra)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "I say: Hello there, friend."


async def test_a_reply_can_be_sent_back_as_it_came(redis_url: str, tmp_path: Path) -> None:
    async with talking(redis_url, tmp_path, {"says": CALL}) as talk:
        found = await talk.openai.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS)
        message = found.choices[0].message
        again = await talk.openai.chat.completions.create(
            model=MODEL, messages=[*HELLO, message, {"role": "user", "content": "And?"}], tools=TOOLS
        )
        assert again.choices[0].finish_reason == "tool_calls"


async def test_tool_calls_whole_and_streamed(redis_url: str, tmp_path: Path) -> None:
    async with talking(redis_url, tmp_path, {"says": CALL, "step_s": 0.002}) as talk:
        reply = await talk.http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "tools": TOOLS}
        )
        (choice,) = strictly(ChatCompletion, reply.content).choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look."
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("look", '{"place": "Bonn"}')

        async with talk.openai.chat.completions.stream(model=MODEL, messages=HELLO, tools=TOOLS) as stream:
            final = await stream.get_final_completion()
        (streamed,) = final.choices[0].message.tool_calls or []
        assert (streamed.function.name, streamed.function.arguments) == ("look", '{"place": "Bonn"}')
        assert streamed.function.parsed_arguments == {"place": "Bonn"}
        assert final.choices[0].finish_reason == "tool_calls"
        assert final.choices[0].message.content == "I look."

        nothing = await talk.openai.chat.completions.create(
            model=MODEL, messages=HELLO, tools=TOOLS, tool_choice="none"
        )
        assert nothing.choices[0].message.content == CALL


async def test_calls_that_a_schema_enforces(redis_url: str, tmp_path: Path) -> None:
    says = '[{"name": "look", "parameters": {"place": "Bonn"}}]'
    async with talking(redis_url, tmp_path, {"says": says}) as talk:
        found = await talk.openai.chat.completions.create(
            model=MODEL, messages=HELLO, tools=TOOLS, tool_choice="required"
        )
        (call,) = found.choices[0].message.tool_calls or []
        assert (call.function.name, call.function.arguments) == ("look", '{"place": "Bonn"}')  # type: ignore[union-attr]
        assert found.choices[0].finish_reason == "tool_calls"
        assert found.choices[0].message.content is None


async def test_reasoning_is_told_from_the_answer(redis_url: str, tmp_path: Path) -> None:
    script = {"says": "<think>\nI am greeted.\n</think>\n\nHello.", "step_s": 0.002}
    async with talking(redis_url, tmp_path, script, reasoning_format="think") as talk:
        found = await talk.openai.chat.completions.create(model=MODEL, messages=HELLO)
        message = found.choices[0].message.model_dump()
        assert message["content"] == "Hello."
        assert message["reasoning"] == message["reasoning_content"] == "I am greeted."
        chunks = await told(talk, messages=HELLO)
        deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
        assert "".join(delta.get("reasoning") or "" for delta in deltas) == "I am greeted."
        assert "".join(delta["content"] or "" for delta in deltas) == "Hello."
        quiet = await talk.openai.chat.completions.create(
            model=MODEL, messages=HELLO, extra_body={"include_reasoning": False}
        )
        assert "reasoning" not in quiet.choices[0].message.model_dump()


async def test_json_by_a_schema(redis_url: str, tmp_path: Path) -> None:
    schema: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "strict": True,
            "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
    async with talking(redis_url, tmp_path, {"says": '{"a": 1}'}, reasoning_format="think") as talk:
        for form in (schema, {"type": "json_object"}):
            found = await talk.openai.chat.completions.create(
                model=MODEL, messages=HELLO, response_format=form
            )
            assert found.choices[0].message.content == '{"a": 1}'


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_that_nobody_could_do_is_a_bad_request(talk: Talk, stream: bool) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 600}]
    with pytest.raises(BadRequestError) as caught:
        await talk.openai.chat.completions.create(model=MODEL, messages=long, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
