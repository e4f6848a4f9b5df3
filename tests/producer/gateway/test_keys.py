"""Who is let in: by a key, or by nothing on a loopback address where there are no keys."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from redis import Redis

from penstock.errors import ServerUnavailable
from penstock.keys import Keys
from penstock.link import Link
from producer.errors import UsageError
from producer.gateway import records as records_module
from producer.gateway.errors import Unavailable
from producer.gateway.keys import Grant, KeyRing, digest_of, make_key, seconds_of
from producer.gateway.records import FileRecords, ServerRecords
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key, ring


@pytest_asyncio.fixture
async def keyed(redis_url: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that wants keys; its folder is `tmp_path`."""
    async with (
        serving(redis_url, tmp_path, auth="keys") as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


async def test_a_key_lets_in_until_it_is_revoked(keyed: httpx.AsyncClient, tmp_path: Path) -> None:
    nobody = await keyed.get("/v1/models")
    assert nobody.status_code == 401
    assert nobody.headers["www-authenticate"] == "Bearer"
    assert nobody.json()["error"]["code"] == "missing_api_key"
    headers, key = await add_key(tmp_path, "alice")
    assert (await keyed.get("/v1/models", headers=headers)).status_code == 200
    wrong = await keyed.get("/v1/models", headers={"Authorization": "Bearer psk_nobody"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    assert await ring(tmp_path).revoke(key.id) is not None
    revoked = await keyed.get("/v1/models", headers=headers)
    assert revoked.status_code == 401
    assert "was revoked" in revoked.json()["error"]["message"]


async def test_an_expired_key_is_refused_by_name(keyed: httpx.AsyncClient, tmp_path: Path) -> None:
    headers, _ = await add_key(tmp_path, "alice", expires_in_s=-1)
    refused = await keyed.get("/v1/models", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "expired_api_key")


async def test_only_operators_may_operate(keyed: httpx.AsyncClient, tmp_path: Path) -> None:
    tenant, _ = await add_key(tmp_path, "alice")
    operator, _ = await add_key(tmp_path, "ops", is_operator=True)
    refused = await keyed.get("/v1/penstock/dead", headers=tenant)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "operator_only")
    assert (await keyed.get("/v1/penstock/dead", headers=operator)).status_code == 200


async def test_what_is_kept_is_the_digest_in_a_file_of_its_owner(tmp_path: Path) -> None:
    headers, key = await add_key(tmp_path, "alice", note="for tests")
    text = headers["Authorization"].removeprefix("Bearer ")
    path = tmp_path / "keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text not in path.read_text()
    assert json.loads(path.read_text())[key.id]["digest"] == digest_of(text) == key.digest
    assert len(text) >= 4 + 256 / 6


async def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    """Each reads the file anew under its lock."""
    one, other = ring(tmp_path), ring(tmp_path)
    for writer in (one, other, one, other):
        await writer.add(make_key(Grant(tenant="alice"))[1])
    assert len(await one.list()) == len(await other.list()) == 4


async def test_an_unreadable_file_lets_nobody_in(keyed: httpx.AsyncClient, tmp_path: Path) -> None:
    headers, _ = await add_key(tmp_path, "alice")
    for damaged in (b"{", b'{"key_1": {"id": "\xff"}}', b"[]", b""):
        (tmp_path / "keys.json").write_bytes(damaged)
        refused = await keyed.get("/v1/models", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "keys_unreadable")


async def test_without_keys_the_door_is_open_to_this_machine_until_there_is_one(
    redis_url: str, tmp_path: Path
) -> None:
    async with serving(redis_url, tmp_path) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/v1/penstock/dead")).status_code == 200
        foreign = await client.get("/v1/models", headers={"Host": "evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "foreign_host")
        page = await client.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert (page.status_code, page.json()["error"]["code"]) == (403, "foreign_origin")
        assert (await client.get("/v1/models", headers={"Origin": url})).status_code == 200
        _, key = await add_key(tmp_path, "alice")
        assert (await client.get("/v1/models")).status_code == 401
        await ring(tmp_path).revoke(key.id)
        assert (await client.get("/v1/models")).status_code == 401  # there were keys: it stays closed


async def test_pages_of_named_origins_may_call_and_read_what_clients_need(
    redis_url: str, tmp_path: Path
) -> None:
    alice, _ = await add_key(tmp_path, "alice", requests_per_minute=1)
    origin = {"Origin": "https://app.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with (
        serving(redis_url, tmp_path, auth="keys", cors_origins=("https://app.example",)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        allowed = await client.options("/v1/chat/completions", headers=origin | asked)
        assert (allowed.status_code, "authorization" in allowed.headers["access-control-allow-headers"]) == (
            204,
            True,
        )
        await client.get("/v1/models", headers=origin | alice)
        limited = await client.get("/v1/models", headers=origin | alice)
        assert (limited.status_code, limited.headers["access-control-allow-origin"]) == (
            429,
            "https://app.example",
        )
        exposed = limited.headers["access-control-expose-headers"].lower()
        assert {"retry-after", "retry-after-ms", "x-request-id"} <= set(exposed.replace(" ", "").split(","))
        other = await client.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_keys_on_the_server_that_vanish_close_the_door(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "FRESH_S", 0.05)
    link = Link(redis_url)
    keys = KeyRing(ServerRecords(link, Keys().gateway_keys, tmp_path / "keys-in-redis"))
    text, key = make_key(Grant(tenant="alice"))
    async with (
        serving(redis_url, tmp_path, keys="redis") as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {text}"}) as client,
    ):
        assert (await client.get("/v1/models", headers={"Authorization": ""})).status_code == 200  # none yet
        await keys.add(key)
        async with asyncio.timeout(5):
            while (await client.get("/v1/models", headers={"Authorization": ""})).status_code != 401:  # noqa: ASYNC110 - it is asked, it tells nobody
                await asyncio.sleep(0.05)
        assert (await client.get("/v1/models")).status_code == 200
        with Redis.from_url(redis_url) as redis:
            redis.flushall()
        async with asyncio.timeout(5):
            while (gone := await client.get("/v1/models")).status_code == 200:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.05)
        assert (gone.status_code, gone.json()["error"]["code"]) == (503, "keys_lost")
        assert "lost the gateway's keys" in gone.json()["error"]["message"]
        assert "retry-after" in gone.headers
    # A gateway that was not there when they vanished knows it by the folder.
    async with serving(redis_url, tmp_path, keys="redis") as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/v1/models")).status_code == 503
    await link.aclose()


async def test_keys_on_a_server_that_hangs_are_asked_for_once() -> None:
    """Whoever waited for the answer is told together, not each after a time-out of its own."""
    connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = Link(f"redis://127.0.0.1:{port}?socket_timeout=0.2")
    async with server, asyncio.timeout(20):
        records = ServerRecords(link, "keys")
        found = await asyncio.gather(*(records.read() for _ in range(60)), return_exceptions=True)
        assert all(isinstance(one, ServerUnavailable) for one in found)
        assert 1 <= connections <= 4  # and again over a new one
        await link.aclose()


async def test_a_file_of_keys_that_vanishes_closes_the_door(redis_url: str, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path) as url, httpx.AsyncClient(base_url=url) as client:
        headers, _ = await add_key(tmp_path, "alice")
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        (tmp_path / "keys.json").unlink()
        for shown in (headers, {}):
            gone = await client.get("/v1/models", headers=shown)
            assert (gone.status_code, gone.json()["error"]["code"]) == (503, "keys_lost")
        again, _ = await add_key(tmp_path, "alice")
        assert (await client.get("/v1/models", headers=again)).status_code == 200
        assert (await client.get("/v1/models", headers=headers)).status_code == 401
        (tmp_path / "keys.json").unlink()
        (tmp_path / "keys.lock").unlink()  # by somebody who wants to begin anew
        assert (await client.get("/v1/models")).status_code == 200


async def test_a_marker_that_nobody_may_read_is_not_needed_for_files(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"key_1": {"id": "key_1"}}')
    with pytest.raises(Unavailable, match="a key can't be read"):
        await KeyRing(FileRecords(tmp_path / "keys.json")).list()


def test_a_keys_lane_is_its_tenants_own() -> None:
    assert make_key(Grant(tenant="alice"))[1].lane == "alice"
    assert make_key(Grant(tenant="default"))[1].lane == "standard"
    assert make_key(Grant(tenant="Alice.7", lane="seven"))[1].lane == "seven"
    with pytest.raises(UsageError, match=r"name the tenant's lane with --lane"):
        make_key(Grant(tenant="Alice.7"))
    for bad in ("", "../etc", "a b", "a\n", "x" * 65):
        with pytest.raises(UsageError, match="is not a tenant's name"):
            make_key(Grant(tenant=bad))


def test_periods() -> None:
    assert [seconds_of(text) for text in ("90d", "12h", "5m", "1w", "30s")] == [
        7776000,
        43200,
        300,
        604800,
        30,
    ]
    with pytest.raises(UsageError, match="36500d are the longest"):
        seconds_of("101000w")
    for bad in ("90", "d", "-1d", "1.5h", "0d", "1y"):
        with pytest.raises(UsageError, match="is not a period"):
            seconds_of(bad)
    _, key = make_key(Grant(tenant="alice", expires_in_s=seconds_of("1h")))
    assert key.expires_at == key.created_at + 3600
    assert key.state(time.time()) == "good"
