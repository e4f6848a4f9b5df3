"""Requests that wait for their answer, so many at once: by the client alone, and through a gateway.

The engine is the scripted one, which computes nothing: what is left is the way there and back.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gateway.serving import GatewayProcess
from benchmarks.gateway.wire import Connection
from benchmarks.queue.consuming import ConsumerProcess
from benchmarks.queue.server import Meter, Server
from penstock import Client, Job, Message, SamplingParams
from tests.consumer.models import save_model

JOBS = "/v1/penstock/jobs"
QUESTION = "What is 12 + 30?"
MAX_TOKENS = 8
WARM_UP = 200

Ask = Callable[[], Awaitable[None]]


def measure(path: str, requests: int, at_once: int) -> dict[str, Any]:
    """Requests per second and CPU per request, each way, on one server and one consumer."""
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "scripted")
        with ConsumerProcess(server.url, model, max_num_seqs=256) as consumer:
            consumer.wait_ready(server.client)
            others = {"server": server.pid, "consumer": consumer.pid}
            alone = asyncio.run(_alone(server.url, requests, at_once, others))
            with GatewayProcess(server.url, Path(folder)) as gateway:
                pids = {**others, "gateway": gateway.pid}
                through = asyncio.run(_through(gateway.url(), path, (requests, at_once), pids))
    ratio = round(through["per_s"] / alone["per_s"], 2)
    return {"path": path, "at_once": at_once, "client_alone": alone, "gateway": through, "ratio": ratio}


async def _alone(url: str, requests: int, at_once: int, pids: dict[str, int]) -> dict[str, Any]:
    job = Job(messages=[Message("user", QUESTION)], sampling_params=SamplingParams(max_tokens=MAX_TOKENS))
    async with Client(url) as client:

        async def ask() -> None:
            await client.result(await client.submit(job))

        return await _run([ask] * at_once, requests, pids)


async def _through(url: str, path: str, counts: tuple[int, int], pids: dict[str, int]) -> dict[str, Any]:
    requests, at_once = counts
    connections = [await Connection.open(url) for _ in range(at_once)]
    try:
        return await _run([_asker(connection, path) for connection in connections], requests, pids)
    finally:
        for connection in connections:
            connection.close()


def _asker(connection: Connection, path: str) -> Ask:
    messages = [{"role": "user", "content": QUESTION}]
    if path != JOBS:
        body = json.dumps({"model": "scripted", "messages": messages, "max_tokens": MAX_TOKENS}).encode()

        async def ask() -> None:
            reply = json.loads(await connection.request("POST", path, body))
            assert reply["choices"]

        return ask
    job = json.dumps({"messages": messages, "sampling_params": {"max_tokens": MAX_TOKENS}}).encode()

    async def ask_twice() -> None:
        job_id = json.loads(await connection.request("POST", path, job))["id"]
        reply = json.loads(await connection.request("GET", f"{path}/{job_id}?wait=60"))
        assert reply["state"] == "ended"

    return ask_twice


async def _run(askers: Sequence[Ask], requests: int, pids: dict[str, int]) -> dict[str, Any]:
    await _ask_all(askers, WARM_UP)
    meter = Meter({**pids, "client": os.getpid()})
    start = meter.read()
    await _ask_all(askers, requests)
    return meter.since(start, requests).figures()


async def _ask_all(askers: Sequence[Ask], requests: int) -> None:
    left = requests

    async def ask_on(ask: Ask) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask()

    await asyncio.gather(*map(ask_on, askers))


def summary(figures: dict[str, Any]) -> Sequence[str]:
    """Lines for a person."""
    alone, through = figures["client_alone"], figures["gateway"]
    return [
        f"{figures['at_once']} at once, client alone: {alone['per_s']} requests/s, client "
        f"{alone['client_cpu_us_per_job']} us CPU each",
        f"{figures['at_once']} at once, {figures['path']}: {through['per_s']} requests/s, gateway "
        f"{through['gateway_cpu_us_per_job']} us CPU each",
    ]
