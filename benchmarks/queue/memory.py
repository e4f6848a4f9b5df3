"""Bytes of the server per queued and per finished job, by its settings; a consumer beside a full lane."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.queue.commit_rate import BATCH, ONE_TOKEN, put
from benchmarks.queue.consuming import ConsumerProcess
from benchmarks.queue.fencing import LEASE_MS, ending_of
from benchmarks.queue.server import Server, resident_bytes
from consumer.broker import Broker
from penstock import Job
from penstock.keys import DEFAULT_LANE, Keys
from penstock.link import Link
from penstock.messages import encode_job
from tests.consumer.models import save_model

CREDIT = 512
PROMPT = "Row {n}: summarise the complaint below in one sentence, and name the product that it is about."
"""About 90 bytes; the job's JSON is about 150."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "bytes_1024": ("--stream-node-max-bytes", "1024"),
    "bytes_512": ("--stream-node-max-bytes", "512"),
    "bytes_256": ("--stream-node-max-bytes", "256"),
    "entries_10": ("--stream-node-max-entries", "10"),
}
"""By name, options of the server. Valkey's own are 4096 bytes and 100 entries."""


def measure(jobs: int, settings: Sequence[str]) -> dict[str, Any]:
    """Bytes per job by the server's settings, and a consumer's memory."""
    figures: dict[str, Any] = {"jobs": jobs, "job_bytes": len(encode_job(next(_jobs(1))))}
    for name in settings:
        options = SETTINGS[name]
        with Server(*options, aof=False) as server:
            figures[name] = asyncio.run(_measure_results(server, jobs))
        with Server(*options, aof=False) as server:
            figures[name] |= asyncio.run(_measure_rows(server, jobs))
    figures["consumer"] = _consumer(jobs)
    return figures


def _jobs(count: int) -> Iterator[Job]:
    return (Job(prompt=PROMPT.format(n=n), sampling_params=ONE_TOKEN, row=n) for n in range(count))


async def _measure_results(server: Server, jobs: int) -> dict[str, Any]:
    """Queued jobs, then the same finished with result streams of their own."""
    empty = server.used_memory()
    await put(server.url, _jobs(jobs))
    queued = server.used_memory() - empty
    await _finish(server.url, jobs, None)
    finished = server.used_memory() - empty
    return {"queued_bytes_per_job": round(queued / jobs), "finished_bytes_per_job": round(finished / jobs)}


async def _measure_rows(server: Server, jobs: int) -> dict[str, Any]:
    """Jobs that finished as rows of a batch."""
    empty = server.used_memory()
    await put(server.url, _jobs(jobs), BATCH)
    await _finish(server.url, jobs, BATCH)
    return {"finished_row_bytes_per_job": round((server.used_memory() - empty) / jobs)}


async def _finish(url: str, jobs: int, batch: str | None) -> None:
    link = Link(url)
    broker = Broker(link, Keys(), "bench.1", LEASE_MS)
    done = 0
    while done < jobs:
        leases = await broker.claim(CREDIT)
        endings = [
            replace(ending_of(lease), batch=batch, row=done + n if batch else None)
            for n, lease in enumerate(leases)
        ]
        lost = await broker.commit(endings)
        assert leases, "the loop is alone with its jobs"
        assert not lost, "and so are its leases"
        done += len(leases)
    await link.aclose()


def _consumer(jobs: int) -> dict[str, Any]:
    """Resident bytes of a consumer after the same work beside an almost empty lane and beside a full one."""
    work = min(10_000, jobs // 4)
    resident: dict[str, int] = {}
    for name, queued in (("almost_empty", work), ("full", jobs)):
        with Server(aof=False) as server, tempfile.TemporaryDirectory() as folder:
            asyncio.run(put(server.url, _jobs(queued)))
            with ConsumerProcess(server.url, save_model(Path(folder)), grace_s=1) as consumer:
                _wait_left(server, queued - work)
                resident[name] = resident_bytes(consumer.pid)
    mib = {f"resident_mib_{name}": round(count / 2**20, 1) for name, count in resident.items()}
    return {"jobs_done": work, "queued": jobs, **mib}


def _wait_left(server: Server, left: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        outstanding: Any = server.client.xlen(Keys().jobs(DEFAULT_LANE))
        if outstanding <= left:
            return
        time.sleep(0.01)
    raise RuntimeError("the consumer has not done its work in two minutes")


def summary(figures: dict[str, Any]) -> Sequence[str]:
    """Lines for a person."""
    lines = [
        f"{name:>11}: queued {figures[name]['queued_bytes_per_job']} bytes per job, finished "
        f"{figures[name]['finished_bytes_per_job']}, finished as a row "
        f"{figures[name]['finished_row_bytes_per_job']}"
        for name in figures
        if name in SETTINGS
    ]
    consumer = figures["consumer"]
    return [
        f"{figures['jobs']} jobs of {figures['job_bytes']} bytes",
        *lines,
        f"a consumer after {consumer['jobs_done']} jobs: {consumer['resident_mib_almost_empty']} MiB with "
        f"nothing left queued, {consumer['resident_mib_full']} MiB with {consumer['queued']} queued",
    ]
