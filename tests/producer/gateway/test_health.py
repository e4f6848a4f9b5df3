"""Probes, models, and the form of errors that no route raises itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from penstock.heartbeat import encode_heartbeat
from penstock.keys import Keys
from penstock.messages import Heartbeat
from producer.gateway import served as served_module
from tests.producer.gateway.running import serving


async def test_alive_without_a_consumer_but_not_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).json() == {"ok": True, "reasons": []}
    ready = await http.get("/health/ready")
    assert ready.status_code == 503
    assert "no consumer is alive" in ready.json()["reasons"][0]


async def test_a_server_that_hangs_is_told_to_all_who_ask_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to one after the other, and before a probe has lost its patience."""
    monkeypatch.setattr(served_module, "LIMIT_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    redis_url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with (
        server,
        serving(redis_url, tmp_path) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
        asyncio.timeout(30),
    ):
        replies = await asyncio.gather(*(http.get("/health/ready") for _ in range(40)))
        assert {reply.status_code for reply in replies} == {503}
        assert "did not answer within 0.2 s" in replies[0].json()["reasons"][0]
        assert (await http.get("/health")).json()["ok"] is True


async def test_a_probe_may_ask_by_head(http: httpx.AsyncClient) -> None:
    for path, status in (("/health", 200), ("/health/ready", 503), ("/v1/models", 405)):
        reply = await http.head(path)
        assert (reply.status_code, reply.content) == (status, b"")


@pytest.mark.usefixtures("consumer")
async def test_ready_with_a_consumer_and_its_model_listed(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while (await http.get("/health/ready")).status_code != 200:  # noqa: ASYNC110 - it is asked, it tells nobody
            await asyncio.sleep(0.1)
    listed = (await http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["scripted"]
    assert (await http.get("/v1/models/scripted")).json()["object"] == "model"


async def test_an_unknown_model_and_an_unknown_path_are_404_in_openais_form(http: httpx.AsyncClient) -> None:
    missing = await http.get("/v1/models/org/nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    path = await http.get("/v1/nothing")
    assert path.status_code == 404
    assert path.json()["error"]["type"] == "invalid_request_error"


async def test_a_wrong_method_is_405_in_openais_form(http: httpx.AsyncClient) -> None:
    reply = await http.delete("/v1/models")
    assert reply.status_code == 405
    assert "message" in reply.json()["error"]


async def test_a_model_was_made_when_its_consumer_started(http: httpx.AsyncClient, redis_url: str) -> None:
    """Not at its last sign of life, which is another time at every look."""
    beat = Heartbeat(model="m", phase="ready", at_ms=2**42, interval_ms=1000, started_ms=1_763_820_000_000)
    async with Redis.from_url(redis_url, protocol=2) as redis:
        await redis.hset(Keys().consumers, "c.1", encode_heartbeat(beat))
    async with asyncio.timeout(20):
        while not (reply := await http.get("/v1/models/m")).is_success:  # noqa: ASYNC110 - it is asked, it tells nobody
            await asyncio.sleep(0.1)
    assert reply.json()["created"] == 1_763_820_000
