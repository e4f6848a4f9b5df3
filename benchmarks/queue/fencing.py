"""What fencing costs: the broker's claim and commit scripts against the same work by bare commands.

One loop in one process, over one connection, for each of three ways, by turns:
- `fenced`: claim.lua and commit.lua, as the broker calls them;
- `bare`: XREADGROUP, then for each job XACK, XDEL, XADD of the result and PEXPIRE, in one pipeline: the same
  writes, by whoever sends them;
- `acks`: XREADGROUP and XACK alone. Nothing is written and nothing is deleted: a queue without results.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.queue.commit_rate import put, text_jobs
from benchmarks.queue.server import Cost, Meter, Server
from consumer.broker import Broker
from consumer.lease import Ending, Lease
from penstock.command import pack
from penstock.keys import DEFAULT_LANE, GROUP, Keys
from penstock.link import Link, receive
from penstock.messages import Completion, Done, Usage, encode_event

CREDIT = 128
"""Jobs per claim, in all three ways."""
TTL_MS = 86_400_000
LEASE_MS = 30_000

TERMINAL = encode_event(
    Done(
        outputs=[Completion(text="Hello", finish_reason="length")],
        usage=Usage(prompt_tokens=30, completion_tokens=1),
        model="bench",
        fingerprint="scripted",
    )
)
"""The result of every job."""


def measure(jobs: int, turns: int) -> dict[str, Any]:
    """Medians over turns: rates and the server's CPU, and what they are to each other."""
    costs: dict[str, list[Cost]] = {name: [] for name in WAYS}
    for _ in range(turns):
        for name, way in WAYS.items():
            with Server() as server:
                asyncio.run(put(server.url, text_jobs(jobs)))
                costs[name].append(asyncio.run(_run(server, way, jobs)))
    figures: dict[str, Any] = {name: _median(found) for name, found in costs.items()}
    rate = {name: figures[name]["per_s"] for name in WAYS}
    cpu = {name: figures[name]["server_cpu_us_per_job"] for name in WAYS}
    figures["fenced_rate_of_bare"] = round(rate["fenced"] / rate["bare"], 2)
    figures["fenced_server_cpu_of_bare"] = round(cpu["fenced"] / cpu["bare"], 2)
    figures["fenced_rate_of_acks"] = round(rate["fenced"] / rate["acks"], 2)
    return {"jobs": jobs, "turns": turns, "jobs_per_call": CREDIT, **figures}


def _median(costs: Sequence[Cost]) -> dict[str, Any]:
    return sorted(costs, key=lambda cost: cost.wall_s)[len(costs) // 2].figures() | {
        "per_s": round(statistics.median(cost.per_s for cost in costs)),
    }


async def _run(server: Server, way: Callable[[Link, int], Awaitable[None]], jobs: int) -> Cost:
    link = Link(server.url)
    meter = Meter({"server": server.pid, "client": os.getpid()})
    try:
        await link.command("XGROUP", "CREATE", Keys().jobs(DEFAULT_LANE), GROUP, "0")
        start = meter.read()
        await way(link, jobs)
        return meter.since(start, jobs)
    finally:
        await link.aclose()


async def _fenced(link: Link, jobs: int) -> None:
    broker = Broker(link, Keys(), "bench.1", LEASE_MS)
    while jobs:
        leases = await broker.claim(CREDIT)
        lost = await broker.commit([ending_of(lease) for lease in leases])
        assert leases, "the loop is alone with its jobs"
        assert not lost, "and so are its leases"
        jobs -= len(leases)


def ending_of(lease: Lease) -> Ending:
    """The lease's job has run, and this is its end."""
    return Ending(lease=lease, terminal_id="1-1", terminal=TERMINAL, completed=True, result_ttl_ms=TTL_MS)


async def _read(link: Link) -> list[tuple[str, str]]:
    """Entry id and result key of the next jobs."""
    lane = Keys().jobs(DEFAULT_LANE)
    reply = await link.command("XREADGROUP", "GROUP", GROUP, "bench.1", "COUNT", CREDIT, "STREAMS", lane, ">")
    found: list[tuple[str, str]] = []
    for raw, fields in reply[0][1]:
        entry = raw.decode()
        found.append((entry, Keys().result(f"{DEFAULT_LANE}.{entry}.{fields[3].decode()}")))
    return found


async def _pipeline(link: Link, commands: Sequence[Sequence[str | bytes | int]]) -> None:
    async with link.connection() as connection:
        # As fast as the broker's own calls: redis-py's packer takes three times as long.
        await connection.send_packed_command(b"".join(map(pack, commands)))
        for _ in commands:
            await receive(connection)


async def _bare(link: Link, jobs: int) -> None:
    lane = Keys().jobs(DEFAULT_LANE)
    while jobs:
        found = await _read(link)
        commands: list[Sequence[str | bytes | int]] = []
        for entry, result in found:
            commands += [
                ("XACK", lane, GROUP, entry),
                ("XDEL", lane, entry),
                ("XADD", result, "1-1", "event", TERMINAL),
                ("PEXPIRE", result, TTL_MS),
            ]
        await _pipeline(link, commands)
        jobs -= len(found)


async def _acks(link: Link, jobs: int) -> None:
    lane = Keys().jobs(DEFAULT_LANE)
    while jobs:
        found = await _read(link)
        await _pipeline(link, [("XACK", lane, GROUP, entry) for entry, _ in found])
        jobs -= len(found)


WAYS: dict[str, Callable[[Link, int], Awaitable[None]]] = {"fenced": _fenced, "bare": _bare, "acks": _acks}


def summary(figures: dict[str, Any]) -> Sequence[str]:
    """Lines for a person."""
    lines = [
        f"{name:>11}: {figures[name]['per_s']:6d} jobs/s; CPU us per job: server "
        f"{figures[name]['server_cpu_us_per_job']}, client {figures[name]['client_cpu_us_per_job']}"
        for name in WAYS
    ]
    return [
        *lines,
        f"fenced at {figures['fenced_rate_of_bare']:.0%} of the bare rate with the same writes "
        f"(the server's CPU: {figures['fenced_server_cpu_of_bare']:.0%}), "
        f"{figures['fenced_rate_of_acks']:.0%} of acks alone",
    ]
