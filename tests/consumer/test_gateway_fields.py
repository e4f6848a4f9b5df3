"""What a gateway needs to be told, through a real server: prompts, markers, counts of reasoning."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from penstock.client import Client
from penstock.errors import JobFailed
from penstock.keys import Keys
from penstock.messages import (
    Done,
    FunctionDefinition,
    Heartbeat,
    Job,
    Message,
    ReasoningMarkers,
    SamplingParams,
    Tokens,
    Tool,
    decode_heartbeat,
)
from tests.consumer.models import save_model
from tests.consumer.running import consuming

TEMPLATE = (
    "{% if tools %}[TOOLS]{{ tools[0].function.name }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]"
    "{{ c.function | tojson }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if think %}<think>{{ '\\n' }}{% endif %}{% endif %}"
)
SPECIAL = ["<think>", "</think>", "[TOOL_CALLS]", "[TOOLS]"]
THINK, END_THINK, TOOL_CALLS, TOOLS = 258, 259, 260, 261
USER = Message(role="user", content="Hi")
ADD = Tool(function=FunctionDefinition(name="add"))


async def outcomes(redis_url: str, model: Path, jobs: list[Job]) -> list[Done]:
    async with Client(redis_url) as client, consuming(redis_url, model):
        ids = await client.submit_many(jobs)
        return [await client.result(job_id, timeout=10) for job_id in ids]


def few(**fields: Any) -> Job:
    return Job(sampling_params=SamplingParams(max_tokens=2), **fields)


async def test_an_echo_is_the_prompt_and_its_tokens(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", template=TEMPLATE, special=SPECIAL)
    given, ids, chat, cut, silent, score = await outcomes(
        redis_url,
        model,
        [
            few(prompt="aé", echo=True, return_token_ids=True),
            few(prompt_token_ids=[97, 256, 98], echo=True),
            few(messages=[USER], tools=[ADD], echo=True),
            few(prompt="abcdef", echo=True, truncate_prompt_tokens=3),
            few(prompt="abc"),
            Job(prompt="abc", kind="score", echo=True),
        ],
    )
    assert (given.prompt, given.prompt_tokens) == ("aé", ["a", "\ufffd", "\ufffd"])
    assert given.prompt_token_ids == list("aé".encode())
    assert (ids.prompt, ids.prompt_tokens, ids.prompt_token_ids) == ("a<s>b", ["a", "<s>", "b"], None)
    assert chat.prompt == "[TOOLS]add<user>Hi<assistant>"
    assert chat.prompt_tokens is not None
    assert chat.prompt_tokens[:2] == ["[TOOLS]", "a"]
    assert len(chat.prompt_tokens) == chat.usage.prompt_tokens
    assert (cut.prompt, cut.usage.prompt_tokens) == ("def", 3)
    assert (silent.prompt, silent.prompt_tokens, silent.prompt_token_ids) == (None, None, None)
    assert score.prompt == "abc"


async def test_the_last_message_is_gone_on_with(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", template=TEMPLATE, special=SPECIAL)
    messages = [USER, Message(role="assistant", content="So ")]
    job = few(messages=messages, add_generation_prompt=False, continue_final_message=True, echo=True)
    (done,) = await outcomes(redis_url, model, [job])
    assert done.prompt == "<user>Hi<assistant>So "


async def test_markers_stay_in_the_text_and_reasoning_is_counted(redis_url: str, tmp_path: Path) -> None:
    said = [THINK, *b"hm", END_THINK, *b"So", TOOL_CALLS, *b"{}", TOOLS]
    model = save_model(tmp_path / "model", {"tokens": said}, template=TEMPLATE, special=SPECIAL)
    called, plain, cut, twice = await outcomes(
        redis_url,
        model,
        [
            Job(messages=[USER], tools=[ADD], return_token_ids=True),
            Job(messages=[USER]),
            few(messages=[USER]),
            Job(messages=[USER], sampling_params=SamplingParams(n=2)),
        ],
    )
    assert called.text == "<think>hm</think>So[TOOL_CALLS]{}"
    assert called.outputs[0].token_ids == [*said, 257]
    assert plain.text == "<think>hm</think>So{}"
    assert (called.usage.reasoning_tokens, plain.usage.reasoning_tokens) == (4, 4)
    assert (cut.text, cut.usage.reasoning_tokens) == ("<think>h", 2)
    assert (twice.usage.reasoning_tokens, twice.usage.completion_tokens) == (8, 22)


async def test_a_prompt_may_have_opened_the_reasoning(redis_url: str, tmp_path: Path) -> None:
    said = [*b"hm", END_THINK, *b"So"]
    model = save_model(tmp_path / "model", {"tokens": said}, template=TEMPLATE, special=SPECIAL)
    opened = {"messages": [USER], "chat_template_kwargs": {"think": True}}
    whole, cut, closed = await outcomes(
        redis_url, model, [Job(**opened), few(**opened), few(messages=[USER])]
    )
    assert (whole.text, whole.usage.reasoning_tokens) == ("hm</think>So", 3)
    assert (cut.text, cut.usage.reasoning_tokens) == ("hm", 2)
    assert closed.usage.reasoning_tokens == 0


async def test_a_streamed_text_has_its_markers(redis_url: str, tmp_path: Path) -> None:
    script = {"tokens": [TOOL_CALLS, *b"{}"], "step_s": 0.002}
    model = save_model(tmp_path / "model", script, template=TEMPLATE, special=SPECIAL)
    async with Client(redis_url) as client, consuming(redis_url, model, coalesce_ms=0):
        job_id = await client.submit(Job(messages=[USER], tools=[ADD], stream=True))
        events = [event async for _, event in client.stream(job_id)]
    assert "".join(event.text for event in events if isinstance(event, Tokens)) == "[TOOL_CALLS]{}"


async def test_tools_that_a_template_ignores_fail_their_job(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    with pytest.raises(JobFailed, match="this model's chat template takes no `tools`") as failed:
        await outcomes(redis_url, model, [Job(messages=[USER], tools=[ADD])])
    assert failed.value.error.type == "invalid_job"


async def heartbeat(redis: Redis, redis_url: str, model: Path, **settings: Any) -> Heartbeat:
    async with Client(redis_url) as client, consuming(redis_url, model, **settings):
        await client.result(await client.submit(few(prompt="x")), timeout=10)
        beats = await redis.hgetall(Keys().consumers)
    (beat,) = map(decode_heartbeat, beats.values())
    return beat


async def test_a_heartbeat_tells_of_the_model(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    before = int(time.time() * 1000)
    script = {"max_model_len": 99}
    model = save_model(tmp_path / "model", script, template=TEMPLATE, special=SPECIAL)
    beat = await heartbeat(redis, redis_url, model)
    assert (beat.max_model_len, beat.tool_format) == (99, "mistral")
    assert beat.reasoning == ReasoningMarkers(start="<think>", end="</think>", opened=False)
    assert before <= beat.started_ms <= int(time.time() * 1000)


async def test_formats_may_be_set_by_flag(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", template=TEMPLATE, special=SPECIAL)
    beat = await heartbeat(redis, redis_url, model, tool_format="hermes", reasoning_format="none")
    assert (beat.tool_format, beat.reasoning) == ("hermes", None)


async def test_a_heartbeat_tells_how_much_was_done(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", template=TEMPLATE, special=SPECIAL)
    async with Client(redis_url) as client, consuming(redis_url, model, lease_s=0.5):
        await client.result(await client.submit(few(prompt="xyz")), timeout=10)
        async with asyncio.timeout(10):
            while True:
                (beat,) = map(decode_heartbeat, (await redis.hgetall(Keys().consumers)).values())
                if beat.jobs_total:
                    break
                await asyncio.sleep(0.05)
    assert (beat.prompt_tokens_total, beat.generation_tokens_total) == (3, 2)
    assert (beat.num_waiting, beat.kv_usage) == (0, 0.001)
    assert beat.jobs_total == 1
    assert 0 <= beat.queue_seconds_total < beat.e2e_seconds_total < 10
