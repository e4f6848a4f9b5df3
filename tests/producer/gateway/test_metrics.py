"""A gateway's metrics, access log and traces, against the requests that were made."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from penstock.client import Client
from penstock.telemetry.logs import JsonFormatter
from penstock.telemetry.tracing import Tracing
from producer.gateway.depths import MAX_LANES, OTHER_LANES, LaneDepth, bounded
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.consumer.scraping import Scrape, lint, scrape
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "tell nobody"}], "max_tokens": 5}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


async def reading(http: httpx.AsyncClient, **headers: str) -> Scrape:
    return await scrape(str(http.base_url.join("/metrics")), **headers)


async def until_ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while True:
            if (await http.get("/health/ready")).status_code == 200:
                return
            await asyncio.sleep(0.05)


@pytest.mark.usefixtures("consumer")
async def test_requests_streams_and_the_queue_are_counted(http: httpx.AsyncClient, redis_url: str) -> None:
    await until_ready(http)
    for _ in range(3):
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    streamed = await http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "other"})).status_code == 404
    for number in range(20):
        assert (await http.get(f"/nothing/{number}")).status_code == 404
        assert (await http.get(f"/v1/models/m{number}")).status_code == 404
    async with Client(redis_url) as client:
        await client.pause("slow")
        for _ in range(2):
            await client.submit("x", "slow")
        await asyncio.sleep(1.1)  # what is asked of the server is kept for a second
        found = await reading(http)
    route = "/v1/chat/completions"
    assert found.value("penstock_gateway_requests_total", route=route, method="POST", status="200") == 4
    assert found.value("penstock_gateway_requests_total", route=route, status="404") == 1
    assert found.value("penstock_gateway_requests_total", route="unmatched", status="404") == 20
    assert found.value("penstock_gateway_requests_total", status="404") == 41
    assert found.value("penstock_gateway_request_seconds_count", route=route, method="POST") == 5
    assert found.value("penstock_gateway_first_event_seconds_count", route=route) == 1
    assert found.value("penstock_gateway_open_streams") == 0
    assert found.value("penstock_gateway_open_requests") == 1  # this one
    assert found.value("penstock_gateway_received_bytes_total") >= 5 * len(json.dumps(CHAT)) - 50
    assert found.value("penstock_gateway_sent_bytes_total") > len(streamed.content)
    assert found.value("penstock_lane_queued_jobs", lane="slow") == 2
    assert found.value("penstock_lane_leased_jobs", lane="slow") == 0
    assert 1 <= found.value("penstock_lane_oldest_wait_seconds", lane="slow") < 60
    assert found.value("penstock_lane_queued_jobs", lane="standard") == 0
    assert found.value("penstock_consumers", model_name="scripted", ready="true") == 1
    assert found.value("penstock_dead_letters") == 0
    assert found.value("penstock_queue_up") == 1
    assert len({name for name in found.names if name.startswith("penstock_")}) >= 12
    assert lint(found.families) == []


async def test_metrics_take_an_operators_key_unless_they_are_public(redis_url: str, tmp_path: Path) -> None:
    tenant, _ = await add_key(tmp_path, "alice")
    operator, _ = await add_key(tmp_path, "root", is_operator=True)
    async with serving(redis_url, tmp_path, auth="keys") as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers=tenant)).status_code == 403
        assert (await http.get("/metrics", headers=operator)).status_code == 200
    async with (
        serving(redis_url, tmp_path, auth="keys", metrics_public=True) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        assert (await http.get("/metrics")).status_code == 200


async def test_without_a_server_the_rest_is_still_told(tmp_path: Path) -> None:
    async with (
        serving("redis://127.0.0.1:1/0", tmp_path) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        found = await reading(http)
    assert found.value("penstock_queue_up") == 0
    assert "penstock_lane_queued_jobs" not in found.names
    assert "penstock_gateway_open_streams" in found.names


def test_lanes_beyond_a_number_are_added_up() -> None:
    lanes = [LaneDepth(name=f"l{n:04}", queued=n, leased=1, oldest_s=n) for n in range(1000)]
    kept = bounded(lanes)
    assert len(kept) == MAX_LANES
    assert sum(lane.queued for lane in kept) == sum(range(1000))
    assert kept[-1] == LaneDepth(name=OTHER_LANES, queued=sum(range(801)), leased=801, oldest_s=800)
    assert bounded(lanes[:MAX_LANES]) == lanes[:MAX_LANES]


@pytest.mark.usefixtures("consumer")
async def test_each_request_is_one_line_that_tells_no_prompt(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await until_ready(http)
    caplog.clear()
    reply = await http.post("/v1/chat/completions?secret=query", json=CHAT)
    text = reply.json()["choices"][0]["message"]["content"]
    missing = await http.get("/v1/nothing", headers={"x-request-id": "mine-1"})
    assert missing.headers["x-request-id"] == "mine-1"
    forged = await http.get("/v1/nothing", headers={"x-request-id": "a b"})
    assert re.fullmatch(r"req_[0-9a-f]{24}", forged.headers["x-request-id"])
    submitted = (await http.post("/v1/penstock/jobs", json={"prompt": "tell nobody"})).json()
    await http.get(f"/v1/penstock/jobs/{submitted['id']}")
    records = [record for record in caplog.records if record.name == "gateway.access"]
    lines = [json.loads(JsonFormatter().format(record)) for record in records]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/chat/completions", 200),
        ("GET", "unmatched", 404),
        ("GET", "unmatched", 404),
        ("POST", "/v1/penstock/jobs", 202),
        ("GET", "/v1/penstock/jobs/{job_id}", 200),
    ]
    assert [line["job"] for line in lines[1:]] == ["", "", *[submitted["id"].rpartition(".")[0]] * 2]
    assert lines[0]["request_id"] == lines[0]["job"] == reply.headers["x-request-id"]
    assert lines[0]["tenant"] == "default"
    assert lines[0]["ms"] > 0
    assert {"time", "level", "logger", "message"} <= lines[0].keys()
    # uvicorn's own lines are off, but pytest listens to them; httpx's are the client's.
    ours = " ".join(str(vars(one)) for one in caplog.records if not one.name.startswith(("uvicorn", "http")))
    assert not any(secret in ours for secret in ("tell nobody", text, "secret=query"))


async def test_a_trace_goes_from_the_request_through_the_queue_to_the_commit(
    redis_url: str, tmp_path: Path
) -> None:
    exporter = InMemorySpanExporter()
    model = save_model(tmp_path / "scripted")
    here, there = (Tracing(name, exporter, at_once=True) for name in ("gateway", "consumer"))
    async with (
        consuming(redis_url, model, tracing=there),
        serving(redis_url, tmp_path / "gateway", here) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as http,
    ):
        await until_ready(http)
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=PARENT)).status_code == 200
        async with asyncio.timeout(10):
            while True:
                spans = {span.name: span for span in exporter.get_finished_spans()}
                if len(spans) == 7:
                    break
                await asyncio.sleep(0.02)
    request, enqueue, job = spans["POST /v1/chat/completions"], spans["enqueue"], spans["chat scripted"]
    assert [request.kind, enqueue.kind, job.kind] == [SpanKind.SERVER, SpanKind.PRODUCER, SpanKind.CONSUMER]
    parents = [span.parent.span_id if span.parent else None for span in (request, enqueue, job)]
    ids = [span.context.span_id if span.context else None for span in (request, enqueue)]
    assert parents == [int(SPAN, 16), *ids]
    assert {span.context.trace_id for span in spans.values() if span.context} == {int(TRACE, 16)}
    assert {"wait", "prefill", "decode", "commit"} < spans.keys()
    assert dict(request.attributes or {})["http.response.status_code"] == 200


async def test_without_tracing_a_callers_span_goes_on_in_the_job(redis_url: str, tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    model = save_model(tmp_path / "scripted")
    async with (
        consuming(redis_url, model, tracing=Tracing("consumer", exporter, at_once=True)),
        serving(redis_url, tmp_path / "gateway") as url,
        httpx.AsyncClient(base_url=url, timeout=20) as http,
    ):
        await until_ready(http)
        await http.post("/v1/chat/completions", json=CHAT, headers=PARENT)
        await http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": "nonsense"})
        async with asyncio.timeout(10):
            while True:
                jobs = [span for span in exporter.get_finished_spans() if span.name == "chat scripted"]
                if len(jobs) == 2:
                    break
                await asyncio.sleep(0.02)
    assert [span.parent.span_id if span.parent else None for span in jobs] == [int(SPAN, 16), None]
