"""Streams and limits of several tenants."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.producer.gateway.openai.frames import Frame, frames_of
from tests.producer.gateway.openai.talking import HELLO, MODEL, talking
from tests.producer.gateway.tenants import add_key

CHAT = "/v1/chat/completions"
REQUEST: dict[str, Any] = {"model": MODEL, "messages": HELLO, "stream": True, "max_tokens": 40}


async def test_no_tenant_follows_anothers_stream(redis_url: str, tmp_path: Path) -> None:
    alice, _ = await add_key(tmp_path / "gateway", "alice")
    bob, _ = await add_key(tmp_path / "gateway", "bob")
    async with talking(redis_url, tmp_path, {"says": "It is a secret."}) as talk:
        async with talk.http.stream("POST", CHAT, json=REQUEST, headers=alice) as reply:
            job_id = reply.headers["x-request-id"]
            frames = [frame async for frame in frames_of(reply)]
        last = {"Last-Event-ID": frames[0].id or ""}
        assert (await talk.http.post(CHAT, json=REQUEST, headers=alice | last)).status_code == 200
        assert (await talk.http.post(CHAT, json=REQUEST, headers=bob | last)).status_code == 404
        bare = {"Last-Event-ID": f"{job_id}:0-0"}  # as a reply's id tells it
        assert (await talk.http.post(CHAT, json=REQUEST, headers=bob | bare)).status_code == 404
        assert job_id.startswith("alice.")


async def test_tokens_are_held_until_a_streamed_job_has_ended(redis_url: str, tmp_path: Path) -> None:
    key, _ = await add_key(tmp_path / "gateway", "alice", queued_tokens=60)
    script, gateway = {"says": "I go on and on and on.", "step_s": 0.1}, {"resume_grace_s": 1.0}
    async with talking(redis_url, tmp_path, script, gateway) as talk:
        async with talk.http.stream("POST", CHAT, json=REQUEST, headers=key) as reply:
            await anext(frames_of(reply))
            assert await status(talk.http, key) == 429
        assert await status(talk.http, key) == 429  # its reader may come back
        async with asyncio.timeout(20):
            while await status(talk.http, key) == 429:  # noqa: ASYNC110 - it is asked, it tells nobody
                await asyncio.sleep(0.1)
        whole: list[Frame] = []
        async with talk.http.stream("POST", CHAT, json=REQUEST, headers=key) as reply:
            assert reply.status_code == 200
            whole += [frame async for frame in frames_of(reply)]
        assert whole[-1].data == "[DONE]"
        assert await status(talk.http, key) == 200


async def status(http: httpx.AsyncClient, key: dict[str, str]) -> int:
    """Of a short request."""
    request = REQUEST | {"stream": False, "max_tokens": 40, "stop": "I"}
    return (await http.post(CHAT, json=request, headers=key)).status_code
