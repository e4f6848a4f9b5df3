"""The overview: what it shows, how it stays fresh, and what its buttons do. Browsers' part is in drive.py."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from penstock.client import Client
from penstock.lanes import LaneSettings
from penstock.messages import Heartbeat, Job, SamplingParams
from producer.gateway.depths import OTHER_LANES, LaneDepth
from producer.gateway.page.overview import (
    MAX_CONSUMERS,
    MAX_IDLE_LANES,
    MAX_LANES,
    shown_consumers,
    shown_lanes,
)
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.producer.gateway.batching import ended, has_model, input_of, make_batch, request_line
from tests.producer.gateway.page.reading import HTML, watching
from tests.producer.gateway.running import serving

HX = {"HX-Request": "true"}


async def test_the_page_is_whole_and_names_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    reply = await http.get("/", headers=HTML)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["cache-control"] == "no-store"
    for title in ("Lanes", "Consumers", "Batches", "Dead letters", "Try a prompt"):
        assert title in reply.text
    named = re.findall(r'(?:src|href|action|hx-post|sse-connect)="([^"]*)"', reply.text)
    assert all(one.startswith(("/", "#")) and not one.startswith("//") for one in named)
    assert "style=" not in reply.text
    assert re.findall(r"<script(?![^>]* src=)|\son[a-z]+=", reply.text) == []
    assets = [one for one in named if one.startswith("/assets/")]
    assert len(assets) >= 6
    for asset in assets:
        served = await http.get(asset)
        assert served.status_code == 200
        assert "immutable" in served.headers["cache-control"]
    for wrong in ("/assets/000000000000/page.css", "/assets/x/..%2Fpages.py", "/assets/x/VENDORED.md"):
        assert (await http.get(wrong)).status_code == 404


async def test_what_changes_is_sent_and_nothing_else(redis_url: str, http: httpx.AsyncClient) -> None:
    async with watching(http) as parts, Client(redis_url) as client:
        shown = await parts.until(lambda now: "letters" in now)
        assert set(shown) == {"summary", "charts", "lanes", "consumers", "batches", "letters"}
        assert "no consumer is alive" in shown["summary"]
        before = len(parts.names)
        await client.submit("hello", lane="alice")
        shown = await parts.until(lambda now: "lane-alice" in now["lanes"])
        assert (
            re.search(r"<dt>Queued</dt><dd>1</dd>", shown["summary"]) or "summary" not in parts.names[before:]
        )
        await parts.until(lambda now: "<dt>Queued</dt><dd>1</dd>" in now["summary"])
        assert not {"batches", "letters"} & set(parts.names[before:])


async def test_what_runs_is_named_with_its_consumer(
    redis_url: str, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "slow", {"says": "x" * 400, "step_s": 0.05})
    async with consuming(redis_url, model), Client(redis_url) as client, watching(http) as parts:
        job_id = await client.submit(Job(prompt="hello", sampling_params=SamplingParams(max_tokens=300)))
        entry = job_id.rpartition(".")[0]
        shown = await parts.until(lambda now: entry in now.get("consumers", ""))
        assert "Has 1 job:" in shown["consumers"]
        shown = await parts.until(
            lambda now: re.search(r"Output</dt><dd>[1-9]", now["consumers"]) is not None
        )
        assert re.search(r'class="line1" d="M', shown["charts"])
        assert await client.cancel(job_id)
        await parts.until(lambda now: "Has no job." in now["consumers"])


async def test_a_lane_and_the_queue_are_paused_by_buttons(http: httpx.AsyncClient) -> None:
    async with watching(http) as parts:
        reply = await http.post("/page/lanes/standard/pause", headers=HX)
        assert reply.status_code == 200
        assert "Lane standard is paused" in reply.text
        shown = await parts.until(lambda now: "Resume lane standard" in now.get("lanes", ""))
        assert (await http.post("/page/lanes/standard/resume", headers=HX)).status_code == 200
        await http.post("/page/queue/pause", headers=HX)
        shown = await parts.until(lambda now: "Resume the queue" in now["lanes"])
        assert "Pause lane standard" in shown["lanes"]
        await parts.until(lambda now: "The queue is paused" in now["summary"])
        await http.post("/page/queue/resume", headers=HX)
        await parts.until(lambda now: "The queue is paused" not in now["summary"])
    wrong = await http.post("/page/lanes/No-Lane/pause", headers={**HX, "HX-Target": "notice"})
    assert wrong.status_code == 400
    assert wrong.text.startswith('<div class="banner bad">')


async def test_dead_letters_are_requeued_and_dropped(
    redis_url: str, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "broken", {"fails": ord("!"), "fail_runs": 99})
    async with watching(http) as parts:
        async with Client(redis_url) as client, consuming(redis_url, model, max_attempts=1):
            jobs = [await client.submit(f"<b>{number}!") for number in range(2)]
            shown = await parts.until(lambda now: now.get("letters", "").count("Requeue</button>") == 2)
        letters = re.findall(r'id="letter-([0-9-]+)"', shown["letters"])
        assert shown["letters"].index(jobs[1]) < shown["letters"].index(jobs[0])  # the newest first
        reply = await http.post(f"/page/dead/{letters[0]}/requeue", headers=HX)
        assert re.search(r'href="/page/jobs/(standard\.[0-9a-f.-]+)"', reply.text)
        assert (await http.post(f"/page/dead/{letters[1]}/drop", headers=HX)).status_code == 200
        await parts.until(lambda now: "no job has failed" in now["letters"])
        for act in ("requeue", "drop"):
            assert (await http.post(f"/page/dead/{letters[0]}/{act}", headers=HX)).status_code == 404
            assert (await http.post(f"/page/dead/nonsense/{act}", headers=HX)).status_code == 400


async def test_batches_move_and_are_cancelled(
    redis_url: str, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "scripted", {"step_s": 0.01})
    url = str(http.base_url)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as api, watching(http) as parts:
        async with consuming(redis_url, model):
            await has_model(api)
            batch = await make_batch(api, input_of([request_line(f"c{n}") for n in range(5)]))
            await ended(api, batch.id)
            shown = await parts.until(lambda now: "completed" in now.get("batches", ""))
            assert "5 of 5 rows (100 %)" in shown["batches"]
        waiting = await make_batch(api, input_of([request_line(f"c{n}") for n in range(3)]))
        await parts.until(lambda now: "0 of 3 rows" in now["batches"])
        reply = await http.post(f"/page/batches/default/{waiting.id}/cancel", headers=HX)
        assert reply.status_code == 200
        assert (await ended(api, waiting.id)).status == "cancelled"
        shown = await parts.until(
            lambda now: "cancelled" in now["batches"] and "cancelling" not in now["batches"]
        )
        assert shown["batches"].index(waiting.id) < shown["batches"].index(batch.id)
        assert (await http.post("/page/batches/other/batch_x/cancel", headers=HX)).status_code == 404
    # Another gateway knows of them from the storage.
    async with (
        serving(redis_url, tmp_path / "gateway") as other,
        httpx.AsyncClient(base_url=other) as another,
    ):
        assert waiting.id in (await another.get("/", headers=HTML)).text


async def test_a_batch_that_a_client_drives_is_shown_while_something_of_it_runs(
    redis_url: str, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", {"says": "x" * 40, "step_s": 0.05})
    async with (
        consuming(redis_url, model, max_num_seqs=2),
        Client(redis_url) as client,
        watching(http) as parts,
    ):
        batch = await client.batch("run-mine").take(restart=True, expected=40)
        few = SamplingParams(max_tokens=30)
        await batch.enqueue_rows(
            [Job(prompt=f"{n}", row=n, sampling_params=few) for n in range(4)], cursor="", new_cursor="4"
        )
        shown = await parts.until(lambda now: "run-mine" in now.get("batches", ""))
        assert " of 40 rows" in shown["batches"]
        await parts.until(lambda now: re.search("[1-4] of 40 rows", now["batches"]) is not None)
        await parts.until(lambda now: "Has no job." in now["consumers"])
        await batch.delete()
        await parts.until(lambda now: "run-mine" not in now["batches"])


async def test_an_unreachable_queue_is_told_and_the_page_stays(tmp_path: Path) -> None:
    async with (
        serving("redis://127.0.0.1:1", tmp_path) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
    ):
        reply = await http.get("/", headers=HTML)
        assert reply.status_code == 200
        assert "the queue can&#39;t be reached" in reply.text
        assert (await http.post("/page/queue/pause", headers=HX)).status_code == 503


@pytest.mark.usefixtures("consumer")
async def test_many_watch_one_rendering_and_a_slow_one_sees_the_latest(
    redis_url: str, http: httpx.AsyncClient
) -> None:
    async with Client(redis_url) as client, watching(http) as slow, watching(http) as quick:
        await quick.until(lambda now: "letters" in now)
        for number in range(3):
            await client.set_lane(f"lane-{number}", weight=2.0)
            await quick.until(lambda now, lane=f"lane-lane-{number}": lane in now["lanes"])
        shown = await slow.until(lambda now: "lane-lane-2" in now.get("lanes", ""))
        assert shown["lanes"] == quick.now["lanes"]
    await asyncio.sleep(0)


def test_consumers_that_are_not_ready_come_before_those_that_are() -> None:
    beats = {
        f"c{n:02}": Heartbeat(model="m", phase="loading" if n == 50 else "ready", at_ms=1, interval_ms=1)
        for n in range(60)
    }
    names = list(shown_consumers(beats))
    assert names == ["c50", *(f"c{n:02}" for n in range(MAX_CONSUMERS - 1))]


def test_lanes_that_hold_something_or_are_paused_come_before_idle_ones() -> None:
    paused = LaneSettings(paused=True)
    idle = [LaneDepth(name=f"a{n:03}") for n in range(100)]
    kept = [LaneDepth(name="y", settings=paused), LaneDepth(name="z", queued=1)]
    assert shown_lanes([*idle, *kept]) == [*idle[:MAX_IDLE_LANES], *kept]
    full = [LaneDepth(name=f"b{n:03}", leased=n + 1) for n in range(100)]
    assert (
        shown_lanes([*idle, *full, *kept, LaneDepth(name=OTHER_LANES, queued=9)]) == full[100 - MAX_LANES :]
    )
