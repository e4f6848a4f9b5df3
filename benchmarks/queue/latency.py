"""From `submit` to the first event: an idle queue, a streamed job, one after the other."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from benchmarks.queue.consuming import ConsumerProcess
from benchmarks.queue.percentiles import percentiles_ms
from benchmarks.queue.server import Server
from penstock import Client, Job, SamplingParams
from tests.consumer.models import save_model

_PAUSE_S = 0.005
"""Between two jobs: consumer and engine are idle again when the next one comes."""


def measure(jobs: int) -> dict[str, Any]:
    """Milliseconds from before `Client.submit` to the first event of `Client.stream`, and to the last."""
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        with ConsumerProcess(server.url, model) as consumer:
            consumer.wait_ready(server.client)
            first, last = asyncio.run(_measure(server.url, jobs))
    figures = {"first_event_ms": percentiles_ms(first), "last_event_ms": percentiles_ms(last)}
    return {"jobs": jobs, **figures, "vs_target": round(10 / figures["first_event_ms"]["p50"], 1)}


async def _measure(url: str, jobs: int) -> tuple[list[float], list[float]]:
    first: list[float] = []
    last: list[float] = []
    job = Job(prompt="say hello", stream=True, sampling_params=SamplingParams(max_tokens=4))
    async with Client(url) as client:
        for _ in range(jobs):
            start = time.perf_counter()
            seen: list[float] = []
            async with aclosing(client.stream(await client.submit(job))) as events:
                async for _ in events:
                    seen.append(time.perf_counter() - start)
            first.append(seen[0])
            last.append(seen[-1])
            await asyncio.sleep(_PAUSE_S)
    return first, last


def summary(figures: dict[str, Any]) -> Sequence[str]:
    """Lines for a person."""
    return [
        f"{name}: " + ", ".join(f"{point} {ms} ms" for point, ms in figures[name].items())
        for name in ("first_event_ms", "last_event_ms")
    ]
