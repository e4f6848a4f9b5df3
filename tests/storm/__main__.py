"""`python -m tests.storm` (`make storm`): consumers and server are killed for minutes, and nothing is lost.

Every answer is compared with the one of an undisturbed run of the same job. The server keeps an append-only
file that is synced before each reply: so a SIGKILL of the server may lose nothing at all, and "0 lost" can be
asked for. (With `everysec`, the default of most servers, the last second may be lost.) The exit status is 1
where anything was lost, doubled or changed, or where jobs took too long to go on.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.link import Link
from tests.conftest import Server
from tests.storm import report
from tests.storm.audit import Auditor, patiently
from tests.storm.clients import Clients
from tests.storm.faults import Faults
from tests.storm.fleet import Fleet, FleetSettings
from tests.storm.ledger import Ledger
from tests.storm.pool import Question, make_pool
from tests.storm.tally import read_runs

PROGRESS_S = 10.0
SLACK_S = 5.0
"""Above the lease: within so much, 99 of 100 jobs have gone on."""


class Storm(Struct, frozen=True, kw_only=True):
    """How long and how hard."""

    minutes: float
    kills: int
    consumers: int
    jobs: int
    every_s: float
    lease_s: float
    seed: int


def arguments() -> tuple[Storm, Path]:
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0, help="end after so long")
    parser.add_argument("--kills", type=int, default=300, help="end after so many kills")
    parser.add_argument("--consumers", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=32, help="clients, each with a job under way, or a batch")
    parser.add_argument("--every-s", type=float, default=3.0, help="mean time between two kills")
    parser.add_argument("--lease-s", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=report.RESULTS / "storm.json")
    values = vars(parser.parse_args())
    results = values.pop("results")
    return Storm(**values), results


@asynccontextmanager
async def beside(loop: Coroutine[Any, Any, None]) -> AsyncGenerator[None, None]:
    """Run a loop while the body runs; what it raises ends the body."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(loop)
        yield
        task.cancel()


async def main() -> int:
    """Run, report, and give the exit status."""
    storm, results = arguments()
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    server = Server(folder, "--appendfsync", "always", aof=True).start()
    try:
        figures = await run(storm, server, folder)
    finally:
        server.kill()
    report.print_table(figures)
    report.write(figures, results)
    slow = figures["recovery_s"].get("all", {}).get("p99", 0.0) > storm.lease_s + SLACK_S
    failed = any(figures["broken"].values()) or slow
    if failed or figures["ended_by_themselves"]:
        print(f"logs of the consumers, problems and the server's append-only file are in {folder}")
    else:
        shutil.rmtree(folder)
    return int(failed)


async def run(storm: Storm, server: Server, folder: Path) -> dict[str, Any]:
    """All of it; gives the figures."""
    rng = random.Random(storm.seed)
    questions = await undisturbed(server, folder, storm)
    with server.client() as redis:
        redis.flushall()
    link, ledger = Link(server.url), Ledger()
    tallies = folder / "storm"
    tallies.mkdir()
    settings = FleetSettings(url=server.url, folder=tallies, size=storm.consumers, lease_s=storm.lease_s)
    fleet = Fleet(settings, link)
    clients = Clients(server.url, questions, ledger, rng)
    faults = Faults(fleet, server, ledger, rng)
    auditor = Auditor(link, ledger, clients, settle_s=2 * storm.lease_s + 5)
    began = time.monotonic()
    try:
        async with beside(fleet.watch()):
            async with beside(auditor.watch()):
                await rage(storm, ledger, faults, clients)
            await patiently(lambda: link.command("PING"))
        await fleet.end()
        await auditor.finish()
    finally:
        await fleet.end()
        await clients.aclose()
        await link.aclose()
    runs = list(read_runs(tallies))
    (folder / "problems.json").write_bytes(msgspec.json.encode(ledger.problems))
    return {
        **report.surroundings(),
        "server": "appendonly, appendfsync always",
        **{name: getattr(storm, name) for name in ("seed", "consumers", "lease_s", "every_s")},
        "clients": storm.jobs,
        "wall_s": round(time.monotonic() - began, 1),
        "ended_by_themselves": fleet.surprises,
        **report.figures(ledger, runs, faults),
    }


async def rage(storm: Storm, ledger: Ledger, faults: Faults, clients: Clients) -> None:
    """Ask and strike until it is over; every job that was asked has ended then."""
    stop = asyncio.Event()
    asking = asyncio.create_task(clients.run(storm.jobs, stop))
    async with beside(faults.strike(storm.every_s, storm.lease_s)):
        await until_over(storm, faults, ledger, asking)
    await faults.calm()
    stop.set()
    await asking


async def undisturbed(server: Server, folder: Path, storm: Storm) -> list[Question]:
    """Ask everything once, of a consumer that nobody touches; the answers are what the storm must give."""
    specs = make_pool(storm.seed)
    tallies = folder / "undisturbed"
    tallies.mkdir()
    link, ledger = Link(server.url), Ledger()
    fleet = Fleet(FleetSettings(url=server.url, folder=tallies, size=1, lease_s=30.0), link)
    clients = Clients(server.url, [Question(spec, []) for spec in specs], ledger, random.Random(0))
    try:
        async with beside(fleet.watch()):
            answers = await clients.answers(specs)
        await fleet.end()
    finally:
        await fleet.end()
        await clients.aclose()
        await link.aclose()
    made = sum(run.num_tokens for run in read_runs(tallies))
    needed = sum(done.usage.completion_tokens for done in answers)
    assert made == needed, f"{made} tokens were made for answers of {needed}: the count is wrong"
    print(f"{len(specs)} different jobs, {needed} tokens, answered undisturbed", flush=True)
    return [Question(spec, done.outputs) for spec, done in zip(specs, answers, strict=True)]


async def until_over(storm: Storm, faults: Faults, ledger: Ledger, asking: asyncio.Task[None]) -> None:
    """Wait for enough kills or minutes, and say from time to time how far it is."""
    said = began = time.monotonic()
    while len(faults.blows) < storm.kills and time.monotonic() < began + 60 * storm.minutes:
        await asyncio.sleep(0.2)
        if asking.done():
            asking.result()  # a client failed in a way that is none of the storm's
        if time.monotonic() > said + PROGRESS_S:
            said = time.monotonic()
            kills = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.counts.items()))
            print(
                f"{said - began:6.0f} s: {len(faults.blows)} kills ({kills}); {ledger.num_ended} jobs ended, "
                f"{ledger.num_open} open, {len(ledger.problems)} problems",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
