"""What is refused, as OpenAI's client tells it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from penstock import Job
from penstock.keys import Keys
from tests.producer.gateway.openai.talking import HELLO, MODEL, Talk, talking


async def test_errors_are_the_exceptions_of_openais_client(talk: Talk) -> None:
    create = talk.openai.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        await create(model="nobody", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as unknown:
        await create(model=MODEL, messages=HELLO, extra_body={"colour": "red"})
    assert unknown.value.param == "colour"
    assert "Unrecognized request argument supplied: colour" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as typed:
        await create(model=MODEL, messages=HELLO, temperature="warm")  # type: ignore[arg-type]
    assert (typed.value.param, typed.value.code) == ("temperature", "invalid_type")
    with pytest.raises(openai.BadRequestError) as spoilt:
        await talk.openai.post("/chat/completions", body=None, cast_to=object, content=b"{")
    assert spoilt.value.code == "invalid_json"


async def test_a_full_queue_is_a_rate_limit(redis_url: str, tmp_path: Path) -> None:
    async with talking(redis_url, tmp_path, {"step_s": 0.05}) as talk:
        await talk.queue.pause()
        await talk.queue.set_lane("standard", max_jobs=1)
        waiting = await talk.queue.submit(Job(prompt="x"))
        with pytest.raises(openai.RateLimitError) as full:
            await talk.openai.chat.completions.create(model=MODEL, messages=HELLO)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) >= 1
        await talk.queue.cancel(waiting)


async def test_an_output_that_is_not_what_was_asked_for_is_a_500_that_is_not_tried_again(
    redis_url: str, tmp_path: Path
) -> None:
    async with talking(redis_url, tmp_path, {"says": "no json"}) as talk:
        client = talk.openai.with_options(max_retries=2)
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(
                model=MODEL, messages=HELLO, response_format={"type": "json_object"}
            )
        assert failed.value.code == "invalid_output"
        assert failed.value.response.headers["x-should-retry"] == "false"


async def test_a_job_that_somebody_cancels_is_a_conflict(redis_url: str, tmp_path: Path) -> None:
    async with talking(redis_url, tmp_path, {"step_s": 0.05}) as talk:
        asking = asyncio.create_task(talk.openai.chat.completions.create(model=MODEL, messages=HELLO))
        assert await talk.queue.cancel(await first_job(talk))
        with pytest.raises(openai.ConflictError):
            await asking


async def test_a_stream_of_several_prompts_that_fails_at_once_leaves_none_of_them(talk: Talk) -> None:
    await talk.queue.pause()
    create = talk.openai.completions.create
    asking = asyncio.create_task(create(model=MODEL, prompt=["a", "b"], stream=True))
    assert await talk.queue.cancel(await first_job(talk))
    with pytest.raises(openai.ConflictError):
        await asking
    assert (await talk.queue.lanes())[0].queued == 0


async def test_a_queue_that_fills_up_half_way_through_a_request_has_nothing_of_it(talk: Talk) -> None:
    await talk.queue.pause()
    await talk.queue.set_lane("standard", max_jobs=600)
    with pytest.raises(openai.RateLimitError):
        await talk.openai.embeddings.create(model=MODEL, input=["x"] * 1200)
    assert (await talk.queue.lanes())[0].queued == 0


async def first_job(talk: Talk) -> str:
    """The first that was put in, as soon as it is."""
    async with Redis.from_url(talk.redis_url, protocol=2) as redis, asyncio.timeout(20):
        while True:
            entries: Any = await redis.xrange(Keys().jobs("standard"))
            if entries:
                entry, fields = entries[0]
                return f"standard.{entry.decode()}.{fields[b'nonce'].decode()}"
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/chat/completions", 400, "the request has no body; send one, as JSON"),
        ("POST", "/v1/batches", 400, "the request has no body; send one, as JSON"),
        ("GET", "/v1/nowhere", 404, "Invalid URL (GET /v1/nowhere)"),
        ("GET", "/v1/completions", 405, "Invalid method for URL (GET /v1/completions)"),
    ],
)
async def test_what_is_no_request_at_all_is_told(
    http: httpx.AsyncClient, method: str, path: str, status: int, words: str
) -> None:
    reply = await http.request(method, path)
    assert (reply.status_code, reply.json()["error"]["message"]) == (status, words)
