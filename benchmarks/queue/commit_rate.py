"""From claim to commit: how many jobs a second one consumer takes, answers and ends."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.queue.consuming import ConsumerProcess
from benchmarks.queue.server import Cost, Meter, Server
from penstock import Client, Job, SamplingParams
from penstock.keys import DEFAULT_LANE, Keys
from tests.consumer.models import save_model

ONE_TOKEN = SamplingParams(max_tokens=1)
BATCH = "bench"
_POLL_S = 0.01
_TIMEOUT_S = 120


def text_jobs(count: int) -> Iterable[Job]:
    """Small prompts as text."""
    return (Job(prompt=f"Row {n}: say hello in one word.", sampling_params=ONE_TOKEN) for n in range(count))


def token_jobs(count: int) -> Iterable[Job]:
    """Small prompts as token ids."""
    ids = [list(range(start, start + 8)) for start in range(100)]
    return (Job(prompt_token_ids=ids[n % 100], sampling_params=ONE_TOKEN) for n in range(count))


def row_jobs(count: int) -> Iterable[Job]:
    """Small prompts as text, rows of a batch."""
    return (
        Job(prompt=f"Row {n}: say hello in one word.", sampling_params=ONE_TOKEN, row=n) for n in range(count)
    )


KINDS = {"text": text_jobs, "token_ids": token_jobs, "batch_rows": row_jobs}


async def put(url: str, jobs: Iterable[Job | str], batch: str | None = None) -> list[str]:
    """Enqueue, and give the ids."""
    async with Client(url) as client:
        if batch is not None:
            await client.create_batch(batch)
        return await client.submit_many(jobs, batch=batch)


def measure(jobs: int, max_num_seqs: int, profile: Path | None = None) -> dict[str, Any]:
    """Rates by kind of job; the server keeps an append-only file, synced every second."""
    figures: dict[str, Any] = {"max_num_seqs": max_num_seqs}
    for name in KINDS:
        file = None if profile is None else profile.with_name(f"{profile.name}-{name}")
        figures[name] = measure_kind(name, jobs, {"max_num_seqs": max_num_seqs}, file)
    return figures


def measure_kind(
    name: str, jobs: int, settings: dict[str, Any], profile: Path | None = None
) -> dict[str, Any]:
    """The middle eight tenths of a backlog: what starts and what ends is not counted."""
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        asyncio.run(put(server.url, KINDS[name](jobs), BATCH if name == "batch_rows" else None))
        model = save_model(Path(folder))
        with ConsumerProcess(server.url, model, profile, **settings) as consumer:
            consumer.wait_ready(server.client)
            pids = {"server": server.pid, "consumer": consumer.pid, "engine": consumer.engine_pid}
            cost = _middle(server, Meter(pids), jobs)
        failed: Any = server.client.hget(Keys().batch(BATCH), "failed")
        assert not failed, "rows failed"
    return {**cost.figures(), "vs_target": round(cost.per_s / 10_000, 2)}


def _middle(server: Server, meter: Meter, jobs: int) -> Cost:
    first, last = jobs // 10, jobs * 9 // 10
    done = _wait_done(server, jobs, first)
    start = meter.read()
    cost = meter.since(start, _wait_done(server, jobs, last) - done)
    _wait_done(server, jobs, jobs)
    return cost


def _wait_done(server: Server, jobs: int, wanted: int) -> int:
    """Wait until so many of the jobs have ended, and give how many have."""
    end = time.monotonic() + _TIMEOUT_S
    lane = Keys().jobs(DEFAULT_LANE)
    while time.monotonic() < end:
        outstanding: Any = server.client.xlen(lane)
        if jobs - outstanding >= wanted:
            return jobs - outstanding
        time.sleep(_POLL_S)
    raise RuntimeError(f"{wanted} of {jobs} jobs have not ended in {_TIMEOUT_S} s")


def summary(figures: dict[str, Any]) -> Sequence[str]:
    """Lines for a person."""
    return [
        f"{name:>11}: {kind['per_s']:6d} jobs/s; CPU us per job: server {kind['server_cpu_us_per_job']}, "
        f"consumer {kind['consumer_cpu_us_per_job']}, engine {kind['engine_cpu_us_per_job']}"
        for name, kind in figures.items()
        if isinstance(kind, dict)
    ]
