"""So many streams at once: how much later an event arrives through a gateway than at a client of the queue.

A process of its own plays the consumer, at a given pace: it appends `tokens` events to the result streams of
the jobs that it finds queued, each with the time of its writing as its text. Both ways are measured alike.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import redis

from benchmarks.gateway.rate import JOBS, QUESTION
from benchmarks.gateway.serving import GatewayProcess
from benchmarks.gateway.wire import Connection
from benchmarks.queue.percentiles import percentiles_ms
from benchmarks.queue.server import Meter, Server, resident_bytes
from penstock import Client, Completion, Done, Job, Tokens, Usage
from penstock.keys import EVENT, Keys
from penstock.messages import encode_event

EVENTS = 10
"""`tokens` events per stream, then a terminal one."""

_WRITTEN_AT = re.compile(rb'"(\d{10}\.\d{6})"')  # in quotes: ids have digits and dots too
_SETTLE_S = 1.0

Follow = Callable[[list[float], asyncio.Event], Coroutine[Any, Any, None]]


def measure(path: str, streams: int, events_per_s: int) -> dict[str, Any]:
    """Milliseconds from writing to reading, by the client alone and through a gateway."""
    with Server() as server:
        pids = {"server": server.pid, "client": os.getpid()}
        alone = asyncio.run(_alone(server, streams, events_per_s, pids))
    with (
        Server() as server,
        tempfile.TemporaryDirectory() as folder,
        GatewayProcess(server.url, Path(folder)) as gateway,
    ):
        pids = {"server": server.pid, "client": os.getpid(), "gateway": gateway.pid}
        follow = _through(gateway.url(), path)
        through = asyncio.run(_run(server.url, [follow] * streams, events_per_s, pids))
        through["gateway_resident_bytes_per_stream"] = resident_bytes(gateway.pid) // streams
    added = {
        point: round(through["latency_ms"][point] - alone["latency_ms"][point], 3) for point in ("p50", "p99")
    }
    paced = {"path": path, "streams": streams, "events_per_s": events_per_s}
    return {**paced, "client_alone": alone, "gateway": through, "added_ms": added}


async def _alone(server: Server, streams: int, events_per_s: int, pids: dict[str, int]) -> dict[str, Any]:
    async with Client(server.url) as client:

        async def follow(latencies: list[float], began: asyncio.Event) -> None:
            job_id = await client.submit(Job(prompt=QUESTION, stream=True))
            began.set()
            async with aclosing(client.stream(job_id)) as events:
                async for _, event in events:
                    if isinstance(event, Tokens):
                        latencies.append(time.time() - float(event.text))

        return await _run(server.url, [follow] * streams, events_per_s, pids)


def _through(url: str, path: str) -> Follow:
    async def follow(latencies: list[float], began: asyncio.Event) -> None:
        connection = await Connection.open(url)
        try:
            if path == JOBS:
                body = json.dumps({"prompt": QUESTION, "stream": True}).encode()
                job_id = json.loads(await connection.request("POST", path, body))["id"]
                lines = connection.lines("GET", f"{path}/{job_id}/events")
            else:
                messages = [{"role": "user", "content": QUESTION}]
                body = json.dumps({"model": "scripted", "messages": messages, "stream": True}).encode()
                lines = connection.lines("POST", path, body)
            began.set()
            async for line in lines:
                if b'"done"' not in line and (found := _WRITTEN_AT.search(line)):
                    latencies.append(time.time() - float(found[1]))
        finally:
            connection.close()

    return follow


async def _run(
    url: str, followers: Sequence[Follow], events_per_s: int, pids: dict[str, int]
) -> dict[str, Any]:
    latencies: list[float] = []
    began = [asyncio.Event() for _ in followers]
    following = [
        asyncio.create_task(follow(latencies, event)) for follow, event in zip(followers, began, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in began))
    while redis_jobs(url) < len(followers):  # noqa: ASYNC110 - it is asked, it tells nobody
        await asyncio.sleep(0.05)
    await asyncio.sleep(_SETTLE_S)  # all of them are being followed
    gc.collect()
    gc.disable()  # a look for cycles in this process would be taken for the other side's delay
    meter = Meter(pids)
    start = meter.read()
    command = [sys.executable, "-m", "benchmarks.gateway.streams", url, str(events_per_s)]
    writer = subprocess.Popen(command)  # noqa: ASYNC220 - nothing is measured yet
    await asyncio.gather(*following)
    cost = meter.since(start, len(latencies))
    gc.enable()
    assert writer.wait() == 0, "the writer failed"
    assert len(latencies) == len(followers) * EVENTS, f"{len(latencies)} events arrived"
    figures = {name.replace("job", "event"): value for name, value in cost.figures().items()}
    return {**figures, "latency_ms": percentiles_ms(latencies)}


def redis_jobs(url: str) -> int:
    """How many jobs wait."""
    with redis.Redis.from_url(url, protocol=2) as client:
        return int(client.xlen(Keys().jobs("standard")))  # pyright: ignore[reportArgumentType] - an int


def _write(url: str, events_per_s: int) -> None:
    """An event for each stream, then another for each, and in the end their ends."""
    with redis.Redis.from_url(url, protocol=2) as client:
        entries: Any = client.xrange(Keys().jobs("standard"))
        names = [
            Keys().result(f"standard.{entry.decode()}.{fields[b'nonce'].decode()}")
            for entry, fields in entries
        ]
        start, written = time.time(), 0
        for number in range(1, EVENTS + 2):
            for name in names:
                time.sleep(max(0.0, start + written / events_per_s - time.time()))
                now, written = f"{time.time():.6f}", written + 1
                if number <= EVENTS:
                    entry, event = (
                        f"{number}-0",
                        Tokens(text=now, token_ids=[number], text_offset=(number - 1) * 17),
                    )
                else:
                    usage = Usage(prompt_tokens=1, completion_tokens=EVENTS)
                    outputs = [Completion(text="done", finish_reason="stop")]
                    entry, event = f"{EVENTS}-1", Done(outputs=outputs, usage=usage, model="scripted")
                client.execute_command("XADD", name, entry, EVENT, encode_event(event))


def summary(figures: dict[str, Any]) -> Sequence[str]:
    """Lines for a person."""
    lines = [
        f"{figures['streams']} streams, {name.replace('_', ' ')}: latency p50 {way['latency_ms']['p50']} ms, "
        f"p99 {way['latency_ms']['p99']} ms"
        for name, way in figures.items()
        if isinstance(way, dict) and "latency_ms" in way
    ]
    added, gateway = figures["added_ms"], figures["gateway"]
    return [
        *lines,
        f"added by the gateway: p50 {added['p50']} ms, p99 {added['p99']} ms, "
        f"{gateway['gateway_cpu_us_per_event']} us CPU per event",
    ]


if __name__ == "__main__":
    _write(sys.argv[1], int(sys.argv[2]))
