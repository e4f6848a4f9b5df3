"""How many jobs a second one process puts into a lane: one by one, from many tasks at once, pipelined."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from benchmarks.queue.commit_rate import text_jobs
from benchmarks.queue.server import Meter, Server
from penstock import Client

TASKS = 64
"""Callers at once, for `concurrent`."""


def measure(jobs: int) -> dict[str, Any]:
    """Rates by way of enqueueing; `pipelined` puts all of the jobs, the others a tenth."""
    with Server() as server:
        return asyncio.run(_measure(server, jobs))


async def _measure(server: Server, jobs: int) -> dict[str, Any]:
    meter = Meter({"server": server.pid, "client": os.getpid()})
    figures: dict[str, Any] = {}
    for name, way, count in (
        ("single", _single, jobs // 10),
        ("concurrent", _concurrent, jobs // 10),
        ("pipelined", _pipelined, jobs),
    ):
        async with Client(server.url) as client:
            await client.submit("warm up")
            start = meter.read()
            await way(client, count)
            cost = meter.since(start, count)
        server.client.flushall()
        figures[name] = cost.figures()
    figures["concurrent"]["tasks"] = TASKS
    figures["pipelined"]["vs_target"] = round(figures["pipelined"]["per_s"] / 40_000, 2)
    return figures


async def _single(client: Client, count: int) -> None:
    for job in text_jobs(count):
        await client.submit(job)


async def _concurrent(client: Client, count: int) -> None:
    jobs = iter(text_jobs(count))

    async def caller() -> None:
        for job in jobs:
            await client.submit(job)

    await asyncio.gather(*(caller() for _ in range(TASKS)))


async def _pipelined(client: Client, count: int) -> None:
    await client.submit_many(text_jobs(count))


def summary(figures: dict[str, Any]) -> Sequence[str]:
    """Lines for a person."""
    return [
        f"{name:>11}: {way['per_s']:6d} jobs/s; CPU us per job: server {way['server_cpu_us_per_job']}, "
        f"client {way['client_cpu_us_per_job']}"
        for name, way in figures.items()
    ]
