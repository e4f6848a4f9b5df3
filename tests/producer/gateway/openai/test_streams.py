"""Streams that are cut off, left, taken up again, or read slowly."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.messages import Failed
from penstock.status import Ended, Unknown
from tests.producer.gateway.openai.frames import Frame, frames_of, read_frames
from tests.producer.gateway.openai.talking import HELLO, MODEL, Talk, talking
from tests.producer.gateway.running import serving

CHAT = "/v1/chat/completions"
SLOW = {"says": "<think>\nso\n</think>\nI go on and on, é, and on.", "step_s": 0.01}
SLOWER = SLOW | {"step_s": 0.05}


def streamed(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, "stream": True, **more}


async def ended_as(talk: Talk, job_id: str) -> str:
    """The type of a job's failure, once it has failed."""
    async with asyncio.timeout(20):
        while True:
            status = await talk.queue.status(job_id)
            if isinstance(status, Ended):
                assert isinstance(status.event, Failed)
                return status.event.error.type
            await asyncio.sleep(0.02)


async def is_idle(talk: Talk) -> bool:
    """Whether no job waits or runs; one at least was put in."""
    (lane,) = await talk.queue.lanes()
    return lane.queued + lane.leased == 0


async def cut_off(http: httpx.AsyncClient, request: dict[str, Any], count: int) -> tuple[str, list[Frame]]:
    """The job of a streamed request, and the first events before its connection is closed."""
    frames: list[Frame] = []
    async with http.stream("POST", CHAT, json=request) as reply:
        async for frame in frames_of(reply):
            frames.append(frame)
            if len(frames) == count:
                return reply.headers["x-request-id"], frames
    raise AssertionError("the stream ended before it was cut off")


async def test_a_stream_goes_on_behind_every_one_of_its_events(redis_url: str, tmp_path: Path) -> None:
    """Nothing is repeated and nothing left out, whichever event was the last to arrive."""
    request = streamed(n=2, logprobs=True, stream_options={"include_usage": True})
    async with talking(redis_url, tmp_path, SLOW, reasoning_format="think") as talk:
        whole = await read_frames(talk.http, CHAT, request)
        assert whole[-1] == Frame(None, "[DONE]")
        assert all(frame.id is not None for frame in whole[:-1])
        assert len({frame.id for frame in whole[:-1]}) == len(whole) - 1
        for number, frame in enumerate(whole[:-1], 1):
            assert await read_frames(talk.http, CHAT, request, after=frame.id) == whole[number:]


async def test_a_stream_goes_on_at_another_gateway_while_its_job_runs(redis_url: str, tmp_path: Path) -> None:
    gateway = {"resume_grace_s": 2.0}
    async with talking(redis_url, tmp_path, SLOWER, gateway, reasoning_format="think") as talk:
        job_id, first = await cut_off(talk.http, streamed(), 3)
        async with (
            serving(redis_url, tmp_path / "another") as url,
            httpx.AsyncClient(base_url=url, timeout=30) as other,
        ):
            rest = await read_frames(other, CHAT, streamed(), after=first[-1].id)
        chunks = [frame.json for frame in (*first, *rest[:-1])]
        assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{job_id}"}
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("content") or "" for delta in deltas) == "I go on and on, é, and on."
        assert "".join(delta.get("reasoning") or "" for delta in deltas) == "so"


async def test_a_stream_that_was_left_is_cancelled_after_its_grace(redis_url: str, tmp_path: Path) -> None:
    script = {"step_s": 0.05}
    async with talking(redis_url, tmp_path, script, {"resume_grace_s": 0.2}) as talk:
        job_id, first = await cut_off(talk.http, streamed(), 2)
        assert await ended_as(talk, job_id) == "cancelled"
        again = await read_frames(talk.http, CHAT, streamed(), after=first[-1].id)
        assert again[-1].json["error"]["code"] == "cancelled"  # no [DONE] behind it


async def test_a_stream_is_cancelled_at_once_where_that_is_set(redis_url: str, tmp_path: Path) -> None:
    async with talking(redis_url, tmp_path, {"step_s": 0.05}, {"resume_grace_s": 0}) as talk:
        job_id, _ = await cut_off(talk.http, streamed(), 2)
        assert await ended_as(talk, job_id) == "cancelled"


async def test_a_stream_that_was_taken_up_is_not_cancelled(redis_url: str, tmp_path: Path) -> None:
    async with talking(redis_url, tmp_path, SLOWER, {"resume_grace_s": 1.0}) as talk:
        job_id, first = await cut_off(talk.http, streamed(), 2)
        frames = await read_frames(talk.http, CHAT, streamed(), after=first[-1].id)
        assert frames[-1].data == "[DONE]"
        assert (await talk.queue.result(job_id)).text == SLOW["says"]


async def test_who_waits_for_a_whole_reply_and_leaves_cancels_the_job(redis_url: str, tmp_path: Path) -> None:
    async with talking(redis_url, tmp_path, {"step_s": 0.05}) as talk:
        with pytest.raises(httpx.ReadTimeout):
            await talk.http.post(CHAT, json={"model": MODEL, "messages": HELLO}, timeout=0.5)
        async with asyncio.timeout(20):
            while not await is_idle(talk):  # noqa: ASYNC110 - it is asked, it tells nobody
                await asyncio.sleep(0.02)


async def test_an_answer_that_takes_too_long_is_a_504_and_its_job_is_cancelled(
    redis_url: str, tmp_path: Path
) -> None:
    async with talking(redis_url, tmp_path, {"step_s": 0.05}, {"max_wait_s": 0.3}) as talk:
        reply = await talk.http.post(CHAT, json={"model": MODEL, "messages": HELLO})
        assert reply.status_code == 504
        assert reply.json()["error"]["type"] == "timeout_error"
        assert reply.headers["x-should-retry"] == "false"
        assert await is_idle(talk)


@pytest.mark.parametrize(
    "after", ["nonsense", "standard.1-0:x", "standard.1-0:1-0:1:1", "standard.1-0:1-0:-1"]
)
async def test_a_last_event_id_that_is_none_is_a_bad_request(talk: Talk, after: str) -> None:
    reply = await talk.http.post(CHAT, json=streamed(), headers={"Last-Event-ID": after})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "Last-Event-ID"


async def test_a_stream_of_a_job_that_is_gone_is_a_404(talk: Talk) -> None:
    gone = "standard.1-0.0123456789abcdef"
    assert isinstance(await talk.queue.status(gone), Unknown)
    reply = await talk.http.post(CHAT, json=streamed(), headers={"Last-Event-ID": f"{gone}:1-0"})
    assert reply.status_code == 404


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_stream_that_another_request_began_is_not_taken_up(talk: Talk, path: str) -> None:
    request: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "Hello"}
    request |= {"model": MODEL, "stream": True, "max_tokens": 5}
    first, *_ = await read_frames(talk.http, path, request | {"n": 2})
    error = (await read_frames(talk.http, path, request, after=first.id))[-1].json["error"]
    assert (error["param"], error["type"]) == ("Last-Event-ID", "invalid_request_error")


async def test_where_one_of_several_prompts_fails_the_others_are_cancelled(
    redis_url: str, tmp_path: Path
) -> None:
    request = {"model": MODEL, "prompt": ["a", "b", "c"], "stream": True, "max_tokens": 2000}
    async with talking(redis_url, tmp_path, {"step_s": 0.05}) as talk:
        frames: list[Frame] = []
        async with talk.http.stream("POST", "/v1/completions", json=request) as reply:
            async for frame in frames_of(reply):
                frames.append(frame)
                if len(frames) == 1:
                    assert await talk.queue.cancel(reply.headers["x-request-id"])
        assert frames[-1].json["error"]["code"] == "cancelled"
        assert await is_idle(talk)


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(redis_url: str, tmp_path: Path) -> None:
    async with talking(redis_url, tmp_path, {"step_s": 0.05}) as talk:
        frames: list[Frame] = []
        async with talk.http.stream("POST", CHAT, json=streamed()) as reply:
            async for frame in frames_of(reply):
                frames.append(frame)
                if len(frames) == 2:
                    assert await talk.queue.cancel(reply.headers["x-request-id"])
        error = frames[-1].json["error"]
        assert (error["code"], error["type"]) == ("cancelled", "invalid_request_error")


async def test_a_gateway_that_stops_tells_readers_to_come_back_and_leaves_their_jobs(
    redis_url: str, tmp_path: Path
) -> None:
    frames: list[Frame] = []
    async with (
        talking(redis_url, tmp_path, SLOWER) as talk,
        httpx.AsyncClient(timeout=30) as http,
    ):
        async with serving(redis_url, tmp_path / "stopping") as url, asyncio.timeout(20):
            reading = asyncio.create_task(collect(http, f"{url}{CHAT}", frames))
            while len(frames) < 2:  # noqa: ASYNC110 - a list tells nobody
                await asyncio.sleep(0.01)
        await reading
        *told, error = frames
        assert error.json["error"]["code"] == "gateway_stopping"
        rest = await read_frames(talk.http, CHAT, streamed(), after=told[-1].id)
        assert rest[-1].data == "[DONE]"
        texts = [frame.json["choices"][0]["delta"].get("content") or "" for frame in (*told, *rest[:-1])]
        assert "".join(texts) == SLOW["says"]


async def collect(http: httpx.AsyncClient, url: str, frames: list[Frame]) -> None:
    async with http.stream("POST", url, json=streamed()) as reply:
        async for frame in frames_of(reply):
            frames.append(frame)


async def test_a_slow_reader_gets_everything_and_slows_nobody(redis_url: str, tmp_path: Path) -> None:
    text = "All work and no play. " * 15
    async with talking(redis_url, tmp_path, {"says": text, "step_s": 0.001}) as talk:
        host, port = talk.url.removeprefix("http://").split(":")
        body = json.dumps(streamed(n=16, logprobs=True, top_logprobs=20)).encode()
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await reader.readuntil(b"data: ")
        quick = await talk.openai.chat.completions.create(model=MODEL, messages=HELLO)
        assert quick.choices[0].message.content == text
        data = await asyncio.wait_for(reader.read(-1), 60)
        assert b"data: [DONE]" in data
        assert data.count(b'"finish_reason":"length"') + data.count(b'"finish_reason":"stop"') == 16
        writer.close()
