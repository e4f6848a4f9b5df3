"""Penstock's own routes for jobs: submit, look, follow, cancel; and that a tenant reaches its own alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from penstock.client import Client
from penstock.keys import JobId, Keys
from tests.conftest import Server
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key

JOBS = "/v1/penstock/jobs"
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "sampling_params": {"max_tokens": 12}}


@pytest_asyncio.fixture
async def keyed(redis_url: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that wants keys; its folder is `tmp_path`."""
    async with (
        serving(redis_url, tmp_path, auth="keys") as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


def events_of(text: str) -> list[dict[str, Any]]:
    """Server-sent events, read as strictly as a browser does."""
    events: list[dict[str, Any]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            events.append({**fields, "data": json.loads(fields["data"])})
    return events


@pytest.mark.usefixtures("consumer")
async def test_a_job_is_answered(http: httpx.AsyncClient) -> None:
    taken = await http.post(JOBS, json={**CHAT, "custom_id": "a"})
    assert taken.status_code == 202
    submitted = taken.json()
    assert (submitted["object"], submitted["lane"], submitted["state"]) == (
        "penstock.job",
        "standard",
        "queued",
    )
    assert taken.headers["location"] == f"{JOBS}/{submitted['id']}"
    reply = (await http.get(f"{JOBS}/{submitted['id']}", params={"wait": 20})).json()
    assert (reply["id"], reply["state"]) == (submitted["id"], "ended")
    result = reply["result"]
    assert (result["type"], result["custom_id"]) == ("done", "a")
    assert result["usage"]["completion_tokens"] == 12
    events = events_of((await http.get(f"{JOBS}/{submitted['id']}/events")).text)
    assert [event["event"] for event in events] == ["done"]
    assert events[0]["data"] == result


@pytest.mark.usefixtures("consumer")
async def test_events_come_with_ids_and_go_on_behind_any(http: httpx.AsyncClient) -> None:
    params = {"max_tokens": 30}
    job = (await http.post(JOBS, json={"prompt": "x", "stream": True, "sampling_params": params})).json()[
        "id"
    ]
    async with http.stream("GET", f"{JOBS}/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = events_of((await stream.aread()).decode())
    assert [event["event"] for event in events] == ["tokens"] * (len(events) - 1) + ["done"]
    assert len(events) >= 2
    assert "".join(event["data"]["text"] for event in events[:-1]) == events[-1]["data"]["outputs"][0]["text"]
    for place, event in enumerate(events):
        rest = await http.get(f"{JOBS}/{job}/events", headers={"Last-Event-ID": event["id"]})
        assert events_of(rest.text) == events[place + 1 :]
    for wrong in ("soon", "18446744073709551616-0", "9" * 41):  # the server refuses the latter in words
        refused = await http.get(f"{JOBS}/{job}/events", headers={"Last-Event-ID": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")


async def test_a_job_that_waits_says_why_and_can_be_cancelled(http: httpx.AsyncClient) -> None:
    job = (await http.post(JOBS, json={"prompt": "x"})).json()["id"]
    waiting = (await http.get(f"{JOBS}/{job}", params={"wait": 0.05})).json()
    assert (waiting["state"], waiting["ahead"], waiting["waits_for"]) == ("queued", 0, "consumer")
    assert "no consumer is alive" in waiting["detail"]
    assert (await http.post(f"{JOBS}/{job}/cancel")).json()["cancelled"] is True
    assert (await http.post(f"{JOBS}/{job}/cancel")).json()["cancelled"] is False
    ended = (await http.get(f"{JOBS}/{job}")).json()
    assert ended["result"]["error"]["type"] == "cancelled"


async def test_a_job_whose_result_is_gone_is_told_so_to_who_waits_for_it(
    http: httpx.AsyncClient, server: Server
) -> None:
    job = (await http.post(JOBS, json={"prompt": "x"})).json()["id"]
    assert (await http.post(f"{JOBS}/{job}/cancel")).json()["cancelled"] is True
    with server.client() as redis:
        redis.delete(Keys().result(job.rpartition(".")[0]))
    for wait in (0, 5):
        reply = await http.get(f"{JOBS}/{job}", params={"wait": wait})
        assert (reply.status_code, reply.json()["state"]) == (200, "expired")


async def test_an_idempotency_key_is_one_job_of_one_tenant(keyed: httpx.AsyncClient, tmp_path: Path) -> None:
    alice, _ = await add_key(tmp_path, "alice")
    bob, _ = await add_key(tmp_path, "bob", lane="alice")
    once = {"Idempotency-Key": "order-7"}
    ids = [
        (await keyed.post(JOBS, json={"prompt": "x"}, headers={**headers, **once})).json()["id"]
        for headers in (alice, alice, bob)
    ]
    assert ids[0] == ids[1] != ids[2]
    refused = await keyed.post(JOBS, json={"prompt": "x"}, headers={**alice, "Idempotency-Key": "a b"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_a_tenant_reaches_its_own_jobs_alone(
    keyed: httpx.AsyncClient, redis_url: str, tmp_path: Path
) -> None:
    """Whatever of another's job it may have learned; also where both share a lane."""
    alice, _ = await add_key(tmp_path, "alice", lane="shared")
    also_alice, _ = await add_key(tmp_path, "alice", lane="other")
    bob, _ = await add_key(tmp_path, "bob", lane="shared")
    operator, _ = await add_key(tmp_path, "ops", is_operator=True)
    job = (await keyed.post(JOBS, json={"prompt": "x"}, headers=alice)).json()["id"]
    job_id, _, tag = job.rpartition(".")
    assert JobId.parse(job_id).lane == "shared"
    async with Client(redis_url) as client:
        raw = await client.submit("y", lane="shared")
    changed = f"{job_id}.{'0' * len(tag)}"
    for name in (job, job_id, changed, raw, f"{raw}.{tag}", "shared.1-0", "nonsense"):
        paths = [("GET", name), ("GET", f"{name}/events"), ("POST", f"{name}/cancel")]
        for method, path in paths:
            reply = await keyed.request(method, f"{JOBS}/{path}", headers=bob)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "job_not_found"), path
    for headers, name in [
        (alice, job),
        (also_alice, job),
        (operator, job),
        (operator, job_id),
        (operator, raw),
    ]:
        reply = await keyed.get(f"{JOBS}/{name}", headers=headers)
        assert (reply.status_code, reply.json()["state"]) == (200, "queued"), name
    assert (await keyed.get(f"{JOBS}/{job_id}", headers=alice)).status_code == 404  # the id without its tag


async def test_a_lane_is_the_keys(keyed: httpx.AsyncClient, tmp_path: Path) -> None:
    alice, _ = await add_key(tmp_path, "alice")
    operator, _ = await add_key(tmp_path, "ops", is_operator=True)
    assert (await keyed.post(JOBS, json={"prompt": "x"}, headers=alice)).json()["lane"] == "alice"
    refused = await keyed.post(JOBS, json={"prompt": "x", "lane": "ops"}, headers=alice)
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "lane")
    assert (
        await keyed.post(JOBS, json={"prompt": "x", "lane": "alice"}, headers=operator)
    ).status_code == 202
    lanes = (await keyed.get("/v1/penstock/lanes", headers=alice)).json()["data"]
    assert [(lane["name"], lane["queued"]) for lane in lanes] == [("alice", 2)]
    for lane in ("Not A Lane", "*", "a:b"):
        wrong = await keyed.post(JOBS, json={"prompt": "x", "lane": lane}, headers=operator)
        assert wrong.status_code == 400


async def test_what_is_no_job_of_a_gateway_is_refused(http: httpx.AsyncClient) -> None:
    for job, param in [
        ({"prompt": "x", "batch": "b"}, "batch"),
        ({"prompt": "x", "sampling_params": {"top_p": 7}}, "sampling_params.top_p"),
        ({"prompt": "x", "sampling_params": {"temprature": 1}}, "sampling_params.temprature"),
        ({"prompt": "x", "temprature": 1}, "temprature"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({}, None),
        ([], None),
    ]:
        refused = await http.post(JOBS, json=job)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, param), refused.text
        assert not error["message"].startswith("data")
    long = await http.post(JOBS, json={"prompt": "x"}, headers={"Idempotency-Key": "x" * 256})
    assert (long.status_code, long.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_a_full_lane_is_429(http: httpx.AsyncClient) -> None:
    assert (await http.patch("/v1/penstock/lanes/standard", json={"max_jobs": 1})).status_code == 200
    assert (await http.post(JOBS, json={"prompt": "x"})).status_code == 202
    full = await http.post(JOBS, json={"prompt": "x"})
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1


async def test_a_stream_ends_in_order_when_the_gateway_does(redis_url: str, tmp_path: Path) -> None:
    """And goes on at the next gateway."""
    chunks: list[bytes] = []
    async with httpx.AsyncClient(timeout=30) as client:
        async with serving(redis_url, tmp_path) as url:
            job = (await client.post(f"{url}{JOBS}", json={"prompt": "x"})).json()["id"]
            opened = asyncio.Event()

            async def follow() -> None:
                async with client.stream("GET", f"{url}{JOBS}/{job}/events") as stream:
                    opened.set()
                    chunks.extend([chunk async for chunk in stream.aiter_raw()])

            following = asyncio.create_task(follow())
            await opened.wait()
        await following  # no exception: the body was ended, not cut
        assert b"come back" in b"".join(chunks)
        async with serving(redis_url, tmp_path) as url:
            await client.post(f"{url}{JOBS}/{job}/cancel")
            assert events_of((await client.get(f"{url}{JOBS}/{job}/events")).text)[-1]["event"] == "failed"
