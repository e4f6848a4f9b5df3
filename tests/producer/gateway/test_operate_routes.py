"""Routes for operators: lanes, the queue, dead letters, consumers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from penstock.client import Client
from tests.consumer.models import save_model
from tests.consumer.running import consuming


async def test_lanes_are_set_paused_and_resumed(http: httpx.AsyncClient) -> None:
    lane = "/v1/penstock/lanes/alice"
    made = (await http.patch(lane, json={"weight": 3, "max_jobs": 10})).json()
    assert made == {
        "name": "alice",
        "object": "penstock.lane",
        "weight": 3.0,
        "max_jobs": 10,
        "paused": False,
        "queued": 0,
        "leased": 0,
        "cost": None,
    }
    assert (await http.patch(lane, json={"max_jobs": None})).json()["max_jobs"] is None
    assert (await http.patch(lane, json={})).json()["weight"] == 3.0
    assert (await http.post(f"{lane}/pause")).json()["paused"] is True
    listed = (await http.get("/v1/penstock/lanes")).json()["data"]
    assert [(one["name"], one["paused"]) for one in listed] == [("alice", True), ("standard", False)]
    assert (await http.post(f"{lane}/resume")).json()["paused"] is False
    for change in ({"weight": 0}, {"wait": 1}, {"max_jobs": -1}, {"weight": "x"}):
        assert (await http.patch(lane, json=change)).status_code == 400
    assert (await http.patch("/v1/penstock/lanes/Not-One", json={})).status_code == 400
    assert (await http.patch("/v1/penstock/lanes/*", json={})).status_code == 400


async def test_the_whole_queue(http: httpx.AsyncClient) -> None:
    queue = "/v1/penstock/queue"
    assert (await http.get(queue)).json() == {"object": "penstock.queue", "max_jobs": None, "paused": False}
    assert (await http.patch(queue, json={"max_jobs": 5})).json()["max_jobs"] == 5
    assert (await http.post(f"{queue}/pause")).json()["paused"] is True
    assert (await http.get(queue)).json()["paused"] is True
    assert (await http.post(f"{queue}/resume")).json() == {
        "object": "penstock.queue",
        "max_jobs": 5,
        "paused": False,
    }


async def test_dead_letters(redis_url: str, http: httpx.AsyncClient, tmp_path: Path) -> None:
    model = save_model(tmp_path / "broken", {"fails": ord("!"), "fail_runs": 99})
    async with Client(redis_url) as client, consuming(redis_url, model, max_attempts=1):
        for number in range(3):
            await client.submit(f"job {number}!")
        async with asyncio.timeout(20):
            while len((await http.get("/v1/penstock/dead")).json()["data"]) < 3:  # noqa: ASYNC110 - it is asked, it tells nobody
                await asyncio.sleep(0.05)
    page = (await http.get("/v1/penstock/dead", params={"limit": 2})).json()
    assert (len(page["data"]), page["has_more"], page["last_id"]) == (2, True, page["data"][1]["id"])
    rest = (await http.get("/v1/penstock/dead", params={"after": page["last_id"]})).json()
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    last = f"{2**64 - 1}-{2**64 - 1}"
    assert (await http.get("/v1/penstock/dead", params={"after": last})).json()["data"] == []
    letter = page["data"][0]
    one = (await http.get(f"/v1/penstock/dead/{letter['id']}")).json()
    assert one == letter
    assert one["job"] == {"prompt": "job 0!"}
    assert (one["lane"], len(one["attempts"])) == ("standard", 1)
    requeued = (await http.post(f"/v1/penstock/dead/{letter['id']}/requeue")).json()
    status = (await http.get(f"/v1/penstock/jobs/{requeued['job_id']}")).json()
    assert status["state"] == "queued"
    assert (await http.delete(f"/v1/penstock/dead/{rest['data'][0]['id']}")).json()["deleted"] is True
    for method, path in [("GET", ""), ("POST", "/requeue"), ("DELETE", "")]:
        gone = await http.request(method, f"/v1/penstock/dead/{letter['id']}{path}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "dead_letter_not_found")
        wrong = await http.request(method, f"/v1/penstock/dead/nonsense{path}")
        assert wrong.status_code == 400


@pytest.mark.usefixtures("consumer")
async def test_consumers(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while True:
            found = (await http.get("/v1/penstock/consumers")).json()["data"]
            if found and found[0]["phase"] == "ready":
                break
            await asyncio.sleep(0.1)
    assert found[0]["model"] == "scripted"
    assert found[0]["max_num_seqs"] == 64
    assert found[0]["heartbeat"]["interval_ms"] > 0
