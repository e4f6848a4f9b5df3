"""What a request, and a key, may ask for: bytes, time, requests per minute, queued tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from penstock.keys import Keys
from penstock.link import Link
from penstock.scripts import HOLD, KEEP, LET_GO, RATE
from tests.conftest import Server
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key

JOBS = "/v1/penstock/jobs"


async def test_a_body_that_is_no_json_or_no_job_is_400(http: httpx.AsyncClient) -> None:
    for body, words in [
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"prompt": "x", "prmpt": 1}', "prmpt"),
        (b'{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}', "exactly one of"),
        (b'{"prompt": 7}', "prompt"),
        (b"[" * 100_000, ""),
    ]:
        refused = await http.post(JOBS, content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400, (body[:50], refused.text)
        error = refused.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert words in error["message"]


async def test_a_body_of_another_type_is_415(http: httpx.AsyncClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {} if kind is None else {"Content-Type": kind}
        refused = await http.post(JOBS, content=b'{"prompt": "x"}', headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
    taken = await http.post(
        JOBS, content=b'{"prompt": "x"}', headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert taken.status_code == 202


async def test_a_body_that_is_too_long_is_413(redis_url: str, tmp_path: Path) -> None:
    async def pieces():  # without a Content-Length
        for _ in range(64):
            yield b"x" * 1024

    async with (
        serving(redis_url, tmp_path, max_body_bytes=32 * 1024) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        headers = {"Content-Type": "application/json"}
        whole = await client.post(JOBS, content=b'"' + b"x" * 40_000 + b'"', headers=headers)
        assert (whole.status_code, whole.json()["error"]["code"]) == (413, "request_too_large")
        assert (await client.post(JOBS, content=pieces(), headers=headers)).status_code == 413


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"408"),
        (b"", b"408"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 20_000, b"431"),
        (
            b"POST /v1/penstock/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{",
            b"408",
        ),
        (b"\x16\x03\x01 not HTTP\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 5_000 + b"\r\n\r\n", b"431"),
        (b"GET /health?" + b"x" * 5_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431"),
        (
            b"POST /v1/penstock/jobs HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 5_000 + b"\r\n"
            b"Content-Length: 2\r\n\r\n{}GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"431",
        ),
    ],
    ids=[
        "slow header",
        "nothing",
        "endless header",
        "slow body",
        "not HTTP",
        "long header at once",
        "long line",
        "long header, a body and another request",
    ],
)
async def test_who_sends_slowly_or_too_much_is_let_go(
    redis_url: str, tmp_path: Path, sent: bytes, status: bytes
) -> None:
    settings = {"header_timeout_s": 0.3, "body_timeout_s": 0.3, "max_header_bytes": 4096}
    async with serving(redis_url, tmp_path, **settings) as url:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(sent)
        async with asyncio.timeout(10):
            said = await reader.read()  # to the end: the connection is closed
        assert said.split(b" ")[1] == status
        assert said.count(b"HTTP/1.1 ") == 1
        writer.close()


async def test_a_key_with_a_rate_is_told_when_to_come_back(redis_url: str, tmp_path: Path) -> None:
    headers, _ = await add_key(tmp_path, "alice", requests_per_minute=3)
    free, _ = await add_key(tmp_path, "bob")
    async with (
        serving(redis_url, tmp_path) as one,
        serving(redis_url, tmp_path) as other,
        httpx.AsyncClient() as client,
    ):
        for url in (one, other, one):  # they share the count
            assert (await client.get(f"{url}/v1/models", headers=headers)).status_code == 200
        for url in (one, other):
            late = await client.get(f"{url}/v1/models", headers=headers)
            assert (late.status_code, late.json()["error"]["type"]) == (429, "rate_limit_error")
            assert 1 <= int(late.headers["retry-after"]) <= 20
            assert 0 < int(late.headers["retry-after-ms"]) <= 20_000
        assert (await client.get(f"{one}/v1/models", headers=free)).status_code == 200


async def test_a_bucket_refills_at_its_rate(redis_url: str) -> None:
    link = Link(redis_url)
    key = [Keys().gateway_rate("k")]
    limit = 60_000  # one a millisecond
    for _ in range(100):
        assert await link.script(RATE, key, [limit]) == 0
    assert int(await link.command("PTTL", key[0])) <= 101
    assert await link.script(RATE, [Keys().gateway_rate("one")], [1]) == 0
    assert 59_000 < await link.script(RATE, [Keys().gateway_rate("one")], [1]) <= 60_000
    await link.aclose()


async def test_queued_tokens_are_held_until_the_job_has_ended(redis_url: str, tmp_path: Path) -> None:
    headers, key = await add_key(tmp_path, "alice", queued_tokens=100)
    job = {"prompt": "x" * 40, "sampling_params": {"max_tokens": 49}}  # 11 + 49
    async with (
        serving(redis_url, tmp_path) as url,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        first = await client.post(JOBS, json=job)
        assert first.status_code == 202
        full = await client.post(JOBS, json=job)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queued_tokens_exceeded")
        assert "has 60" in full.json()["error"]["message"]
        assert "retry-after" in full.headers
        never = await client.post(JOBS, json={"prompt": "x", "sampling_params": {"max_tokens": 1000}})
        assert (never.status_code, never.json()["error"]["code"]) == (400, "tokens_limit_exceeded")
        assert (await client.post(f"{JOBS}/{first.json()['id']}/cancel")).json()["cancelled"] is True
        async with asyncio.timeout(10):
            while (await client.post(JOBS, json=job)).status_code != 202:  # noqa: ASYNC110 - it is asked, it tells nobody
                await asyncio.sleep(0.05)
    link = Link(redis_url)
    assert await link.command("ZCARD", Keys().gateway_held(key.id)) == 0  # the gateway left in order
    await link.aclose()


async def test_what_a_dead_gateway_held_is_forgotten(server: Server, redis_url: str) -> None:
    link, names = Link(redis_url), [Keys().gateway_held("k"), Keys().gateway_held_tokens("k")]
    try:
        assert await link.script(HOLD, names, ["dead:70", 70, 100, 1000]) == -1
        assert await link.script(HOLD, names, ["alive:20", 20, 100, 1000]) == -1
        assert await link.script(HOLD, names, ["more:20", 20, 100, 1000]) == 90
        for _ in range(6):
            await link.script(KEEP, names, [60_000, "alive:20"])
            await asyncio.sleep(0.25)
        assert await link.script(HOLD, names, ["more:80", 80, 100, 60_000]) == -1
        await link.script(LET_GO, names, ["dead:70", 70])  # it comes back: nothing is taken twice
        assert int(await link.command("GET", names[1])) == 100
        await link.script(KEEP, names, [60_000, "dead:70"])
        assert await link.command("ZCARD", names[0]) == 2
        await link.script(LET_GO, names, ["alive:20", 20])
        assert int(await link.command("GET", names[1])) == 80
    finally:
        await link.aclose()


async def test_a_key_without_limits_costs_the_server_nothing(
    server: Server, redis_url: str, tmp_path: Path
) -> None:
    headers, _ = await add_key(tmp_path, "alice")
    async with (
        serving(redis_url, tmp_path) as url,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        await client.get("/v1/models")
        with server.client() as redis:
            assert redis.keys("*gateway:rate*") == redis.keys("*gateway:held*") == []
