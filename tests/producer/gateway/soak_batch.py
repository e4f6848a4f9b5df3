"""A long batch with bad lines, gateways and consumers killed in the middle: `make soak-batch`.

Two gateways and a consumer with the scripted engine, all processes of their own. The gateway that drives
the batch is killed at a fifth, at half and at four fifths of the rows, the consumer at a third and at two
thirds; each is started again. In the end every good row is answered once, every bad one told with its code
and line, and no gateway's memory has grown with the rows: what it holds is asked of each process after it has
driven some thousand rows, and may not be exceeded by much as long as it lives.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from openai import APIConnectionError, AsyncOpenAI
from openai.types import Batch

from penstock.keys import EPOCH, Keys
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.producer.gateway.batching import ENDED, answers_of, input_of, make_batch, with_bad_lines
from tests.producer.gateway.gateways import GatewayProcess
from tests.recovery.processes import ConsumerProcess

MIB = 2**20
WARM_ROWS = 5_000
"""Rows after which a process that drives has in memory what it will ever have, but for the rows' marks."""
GROWTH_MIB = 16
KILLS = ((0.2, "gateway"), (0.33, "consumer"), (0.5, "gateway"), (0.67, "consumer"), (0.8, "gateway"))
KEYS = Keys()


class Soak:
    """The processes, and what was seen of them."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.model = save_model(folder / "scripted", {"step_s": 0.01})
        self.gateways = [self.gateway(), self.gateway()]
        self.consumer = self.a_consumer()
        self.driver = 0
        """Where the batch is made, and then whoever is left."""
        self.drove = {self.gateways[0].process.pid: 0}
        """By process: how many rows were answered when it began to drive."""
        self.kills = list(KILLS)
        self.memory: dict[int, list[tuple[int, float]]] = {}
        """By process: rows that were answered, and MiB."""
        self.began = time.monotonic()

    def gateway(self) -> GatewayProcess:
        """One more."""
        return GatewayProcess(self.server.url, self.folder / "gateways")

    def a_consumer(self) -> ConsumerProcess:
        """One more."""
        return ConsumerProcess.scripted(self.server.url, self.model, lease_s=5)

    async def run(self, rows: int) -> None:
        """From upload to the last check."""
        lines, wrong = with_bad_lines(rows)
        for gateway in self.gateways:
            gateway.answers()
        await asyncio.sleep(5)  # for the consumer's first heartbeat: from then on other models are refused
        async with self.client(0) as client:
            batch = await make_batch(client, input_of(lines))
        done = await self.watched(batch, rows)
        seconds = time.monotonic() - self.began
        assert done.status == "completed", done
        async with self.client(0) as client:
            replies, failed = await answers_of(client, done)
        good = {f"c{n}" for n in range(rows) if n not in wrong}
        assert replies.keys() == good, (len(replies), len(good))
        told = {row: (line["error"]["code"], line["error"].get("param")) for row, line in failed.items()}
        assert told == wrong
        assert all(line["error"]["line"] == row + 1 for row, line in failed.items())
        assert done.request_counts is not None
        assert done.request_counts.model_dump() == {
            "total": rows,
            "completed": len(good),
            "failed": len(wrong),
        }
        assert not self.kills, "it was over before everything had been killed"
        grown = self.growth()
        assert grown, "no process lived for long enough to say anything of its memory"
        assert max(grown.values()) < GROWTH_MIB, grown
        print(
            f"{rows} rows in {seconds:.0f} s: {len(good)} answered once, {len(wrong)} told with code and "
            f"line; no gateway grew by more than {max(grown.values()):.0f} MiB"
        )

    def client(self, at: int) -> AsyncOpenAI:
        """Of one of the gateways."""
        return AsyncOpenAI(base_url=f"{self.gateways[at].url}/v1", api_key="none", max_retries=0, timeout=60)

    async def watched(self, batch: Batch, rows: int) -> Batch:
        """The batch, once it has ended; what is to be killed meanwhile is."""
        while True:
            await asyncio.sleep(0.5)
            try:
                async with self.client(0) as client:
                    seen = await client.batches.retrieve(batch.id)
            except APIConnectionError:
                continue
            counts = seen.request_counts
            assert counts is not None
            self.look(counts.completed)
            if seen.status in ENDED:
                return seen
            if self.kills and counts.completed > self.kills[0][0] * rows:
                await asyncio.to_thread(self.kill, self.kills.pop(0)[1], batch.id)

    def look(self, completed: int) -> None:
        """Note the gateways' memory."""
        sizes: list[float] = []
        for pid in (one.process.pid for one in self.gateways):
            sizes.append(psutil.Process(pid).memory_info().rss / MIB)
            self.memory.setdefault(pid, []).append((completed, sizes[-1]))
        seconds = time.monotonic() - self.began
        print(
            f"{seconds:6.1f} s  {completed:7d} rows  {sizes[0]:6.0f} MiB {sizes[1]:6.0f} MiB",
            flush=True,
        )

    def growth(self) -> dict[int, float]:
        """By process that drove: MiB by which it grew once it was warm."""
        grown: dict[int, float] = {}
        for pid, began in self.drove.items():
            warm = [size for rows, size in self.memory[pid] if rows > began + WARM_ROWS]
            if warm:
                grown[pid] = max(warm) - warm[0]
        return grown

    def kill(self, what: str, batch_id: str) -> None:
        """SIGKILL, and a new one. Of the gateways, the one that drives: its death moves the epoch."""
        print(f"kill -9 of a {what}", flush=True)
        if what == "consumer":
            self.consumer.clean_up()
            self.consumer = self.a_consumer()
            return
        before, killed = self.epoch(batch_id), time.monotonic()
        self.gateways[self.driver].kill()
        while self.epoch(batch_id) == before:
            assert time.monotonic() < killed + 15, "nobody took the batch over"
            time.sleep(0.05)
        print(f"taken over after {time.monotonic() - killed:.1f} s", flush=True)
        self.gateways[self.driver] = self.gateway().answers()
        self.driver = 1 - self.driver
        pid = self.gateways[self.driver].process.pid
        self.drove[pid] = max(rows for rows, _ in self.memory[pid])

    def epoch(self, batch_id: str) -> Any:
        """The driver's."""
        with self.server.client() as redis:
            return redis.hget(KEYS.batch(batch_id), EPOCH)

    def end(self) -> None:
        """Leave no process behind."""
        for gateway in self.gateways:
            gateway.kill()
        self.consumer.clean_up()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    rows: int = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="penstock-") as name:
        server = Server(Path(name)).start()
        soak = Soak(Path(name), server)
        try:
            asyncio.run(soak.run(rows))
        finally:
            soak.end()
            server.stop()


if __name__ == "__main__":
    main()
