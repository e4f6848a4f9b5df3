"""The rights on the server that docs/operations.md names for a gateway are enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from tests.conftest import Server
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key
from tests.recovery.test_acl import OPERATIONS, rights

FURTHER = "+@sortedset +decrby"


async def test_the_documented_rights_are_enough(make_server: Callable[..., Server], tmp_path: Path) -> None:
    assert f"A gateway needs `{FURTHER}` too." in OPERATIONS.read_text(encoding="utf-8")
    server = make_server(tcp=True)
    with server.client() as admin:
        admin.execute_command(*rights(), *FURTHER.split())
    headers, _ = await add_key(
        tmp_path, "alice", is_operator=True, requests_per_minute=600, queued_tokens=10_000
    )
    redis_url = server.url.replace("redis://", "redis://penstock:SECRET@")
    async with (
        serving(redis_url, tmp_path, private_webhooks=True) as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client,
    ):
        await client.post("/v1/penstock/webhooks", json={"url": "http://127.0.0.1:9/"})
        job = await client.post("/v1/penstock/jobs", json={"prompt": "x", "webhook": True})
        assert job.status_code == 202, job.text
        assert (await client.post(f"/v1/penstock/jobs/{job.json()['id']}/cancel")).json()["cancelled"] is True
        for path in ("lanes", "queue", "dead", "consumers", "webhooks"):
            assert (await client.get(f"/v1/penstock/{path}")).status_code == 200
    with server.client() as admin:
        assert admin.acl_log() == []
