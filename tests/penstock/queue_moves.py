"""A consumer's and a client's moves as bare script calls, for tests of what the scripts themselves decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from penstock.keys import GROUP, Keys
from penstock.scripts import CLAIM, COMMIT, Argument, Script

KEYS = Keys()
LEASE_MS = 60_000
TTL_MS = 60_000


@dataclass(frozen=True)
class Taken:
    """One entry of a claim's reply."""

    lane: str
    entry: str
    deliveries: int
    charged: int
    num_failures: int
    fields: Mapping[bytes, bytes]

    @property
    def result(self) -> str:
        """Name of the result stream of a raw job."""
        return KEYS.result(f"{self.lane}.{self.entry}")


class Queue:
    """Raw jobs in lanes of one server."""

    def __init__(self, server: redis.Redis) -> None:
        self.server = server

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script by its source."""
        return self.server.eval(script.source, len(keys), *keys, *args)

    def lane(self, name: str, count: int, settings: str = "{}") -> list[str]:
        """Declare a lane and put raw jobs into it; gives their entry ids."""
        self.server.hset(KEYS.lanes, name, settings)
        with self.server.pipeline(transaction=False) as pipeline:
            for _ in range(count):
                pipeline.xadd(KEYS.jobs(name), {"job": "{}"})
            return [entry.decode() for entry in pipeline.execute()]

    def lanes(self) -> list[str]:
        """Declared lanes, in the order of their names."""
        return sorted({lane.decode() for lane in self.server.hkeys(KEYS.lanes)} - {"*"})

    def claim(self, consumer: str, credit: int, *, reclaims: bool = True) -> list[Taken]:
        """Take jobs of all declared lanes."""
        return self.claim_reply(consumer, credit, reclaims=reclaims)[0]

    def claim_reply(
        self, consumer: str, credit: int, *, reclaims: bool = True
    ) -> tuple[list[Taken], dict[str, tuple[str, str]]]:
        """As `claim`; and per lane the last delivered id and the next cursor."""
        lanes = self.lanes()
        args: list[Argument] = [GROUP, consumer, LEASE_MS, credit]
        for lane in lanes:
            args += [lane, "0-0" if reclaims else ""]
        keys = [KEYS.lanes, KEYS.deficits, KEYS.attempts, *map(KEYS.jobs, lanes)]
        rows, states, _ = self.run(CLAIM, keys, args)
        taken = [
            Taken(lanes[lane], entry.decode(), *numbers, dict(zip(flat[::2], flat[1::2], strict=True)))
            for lane, entry, *numbers, flat in rows
        ]
        assert len(taken) <= credit
        return taken, {
            lane: (delivered.decode(), cursor.decode())
            for lane, (delivered, cursor) in zip(lanes, states, strict=True)
        }

    def commit(self, taken: Taken, consumer: str, cost: int) -> bool:
        """End a job that cost so many tokens."""
        keys = [KEYS.jobs(taken.lane), KEYS.deficits, KEYS.attempts, taken.result]
        job = [taken.entry, taken.deliveries, taken.charged, cost, TTL_MS, 0, "", "", "1-1", "{}"]
        return self.run(COMMIT, keys, [GROUP, consumer, taken.lane, 0, *job]) == [1]

    def deficit(self, lane: str) -> float:
        """Tokens that the lane has left, or below zero owes."""
        return float(self.server.hget(KEYS.deficits, lane) or 0)
