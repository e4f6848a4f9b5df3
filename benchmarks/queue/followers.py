"""Thousands of followers of one client: what reaches them how fast, over how many connections.

A process of its own plays the consumer: it appends `tokens` events to the result streams of jobs that are
really queued, each event with the time of its writing as its text. It goes as fast as it can, for the rate,
and then at a given rate, for the latency.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import redis

from benchmarks.queue.percentiles import percentiles_ms
from benchmarks.queue.server import Meter, Server
from penstock import Client, Done, Job
from penstock.keys import EVENT, Keys
from penstock.messages import Tokens, Usage, encode_event

EVENTS = 10
"""`tokens` events per follower, then a terminal one."""
_PART = 100
"""Events per write."""


def measure(counts: Sequence[int], events_per_s: int) -> dict[str, Any]:
    """By number of followers: unpaced and paced."""
    figures: dict[str, Any] = {"events_per_follower": EVENTS + 1}
    for count in counts:
        with Server() as server:
            flat_out = asyncio.run(_measure(server, count, 0))
            paced = asyncio.run(_measure(server, count, events_per_s))
        figures[str(count)] = {"flat_out": flat_out, f"at_{events_per_s}_per_s": paced}
    return figures


async def _measure(server: Server, count: int, events_per_s: int) -> dict[str, Any]:
    others = _num_connections(server)
    meter = Meter({"server": server.pid, "client": os.getpid()})
    latencies: list[float] = []
    async with Client(server.url) as client:
        ids = await client.submit_many([Job(prompt="follow me")] * count)
        followers = [asyncio.create_task(_follow(client, job_id, latencies)) for job_id in ids]
        await asyncio.sleep(1.0)  # all of them are in a read that blocks
        connections = _num_connections(server) - others
        start = meter.read()
        writer = _start_writer(server.url, ids, events_per_s)
        await asyncio.gather(*followers)
        cost = meter.since(start, len(latencies))
        assert writer.wait() == 0, "the writer failed"
    figures = {name.replace("job", "event"): value for name, value in cost.figures().items()}
    return {**figures, "latency_ms": percentiles_ms(latencies), "connections": connections}


async def _follow(client: Client, job_id: str, latencies: list[float]) -> None:
    async with aclosing(client.stream(job_id)) as events:
        async for _, event in events:
            written = (
                event.text if isinstance(event, Tokens) else event.model if isinstance(event, Done) else ""
            )
            latencies.append(time.time() - float(written))


def _num_connections(server: Server) -> int:
    return int(server.info("clients")["connected_clients"])


def _start_writer(url: str, ids: Sequence[str], events_per_s: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.queue.followers", url, str(events_per_s)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert writer.stdin is not None
    writer.stdin.write("\n".join(ids).encode())
    writer.stdin.close()
    return writer


def _write(url: str, events_per_s: int, ids: Sequence[str]) -> None:
    """An event for each stream, then another for each, and in the end their ends."""
    start, written = time.time(), 0
    with redis.Redis.from_url(url, protocol=2) as client:
        for number in range(1, EVENTS + 2):
            for first in range(0, len(ids), _PART):
                if events_per_s:
                    time.sleep(max(0.0, start + written / events_per_s - time.time()))
                part = ids[first : first + _PART]
                _write_part(client, part, number)
                written += len(part)


def _write_part(client: redis.Redis, ids: Sequence[str], number: int) -> None:
    now = repr(time.time())
    if number <= EVENTS:
        entry, event = f"{number}-0", encode_event(Tokens(text=now, token_ids=[number], text_offset=0))
    else:
        usage = Usage(prompt_tokens=1, completion_tokens=EVENTS)
        entry, event = f"{EVENTS}-1", encode_event(Done(outputs=[], usage=usage, model=now))
    with client.pipeline(transaction=False) as pipeline:
        for job_id in ids:
            pipeline.execute_command("XADD", Keys().result(job_id), entry, EVENT, event)
        pipeline.execute()


def summary(figures: dict[str, Any]) -> Sequence[str]:
    """Lines for a person."""
    return [
        f"{count} followers, {name}: {way['per_s']} events/s, latency p50 {way['latency_ms']['p50']} ms, "
        f"p99 {way['latency_ms']['p99']} ms, client {way['client_cpu_us_per_event']} us CPU per event, "
        f"server {way['server_cpu_us_per_event']}, {way['connections']} connections"
        for count, ways in figures.items()
        if isinstance(ways, dict)
        for name, way in ways.items()
    ]


if __name__ == "__main__":
    _write(sys.argv[1], int(sys.argv[2]), sys.stdin.read().split())
