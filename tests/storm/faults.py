"""What a storm does to its consumers and its server: one thing at a time, to whoever has jobs."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final, Literal

import psutil
from msgspec import Struct

from penstock.errors import ServerError
from tests.conftest import Server
from tests.storm.fleet import Fleet, Member
from tests.storm.ledger import Ledger

Kind = Literal["SIGKILL", "SIGSTOP", "SIGTERM", "engine SIGKILL", "server SIGKILL"]
WEIGHTS: Final[dict[Kind, int]] = {
    "SIGKILL": 30,
    "SIGSTOP": 20,
    "SIGTERM": 10,
    "engine SIGKILL": 25,
    "server SIGKILL": 15,
}
LOOK_AGAIN_S: Final = 0.1
ENDS_BETWEEN: Final = 8
"""Jobs that end between two blows, at least."""


class Blow(Struct):
    """One fault, and whom it met."""

    kind: Kind
    at: float
    """By the monotonic clock."""
    held: list[str]
    """Ids of the jobs that ran there."""
    back_at: float | None = None
    """When the server answered again."""


class Faults:
    """Strikes about every `every_s` seconds; a blow that would meet nobody at work waits until it does."""

    def __init__(self, fleet: Fleet, server: Server, ledger: Ledger, rng: random.Random) -> None:
        self._fleet = fleet
        self._server = server
        self._ledger = ledger
        self._rng = rng
        self._under_way: set[asyncio.Task[None]] = set()
        self.blows: list[Blow] = []

    @property
    def counts(self) -> Counter[str]:
        """Blows by kind."""
        return Counter(blow.kind for blow in self.blows)

    async def strike(self, every_s: float, lease_s: float) -> None:
        """For ever."""
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        while True:
            num_ended = self._ledger.num_ended
            await asyncio.sleep(self._rng.uniform(0.3, 1.7) * every_s)
            # On a machine so busy that starting takes all of it, kills alone would be all that happens.
            await self._until_ended(num_ended + ENDS_BETWEEN)
            (kind,) = self._rng.choices(kinds, weights)
            if kind == "server SIGKILL":
                # Shielded: where the storm ends meanwhile, the server is to be there for what follows.
                await asyncio.shield(self._at_length(self._kill_server()))
            else:
                member, held = await self._victim(kind)
                self._hit(kind, member, held, lease_s)

    async def calm(self) -> None:
        """Let everything that is stopped go on."""
        await asyncio.gather(*self._under_way)

    def _at_length(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _until_ended(self, count: int) -> None:
        while True:
            if self._ledger.num_ended >= count:
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _victim(self, kind: Kind) -> tuple[Member, set[str]]:
        """A member at work, more likely the more it has; somebody else is ready to go on with its jobs."""
        while True:
            try:
                held, ready = await self._fleet.held(), await self._fleet.ready()
            except ServerError:
                held, ready = {}, set[int]()
            able = [
                member
                for member in self._fleet.members
                if member.index in ready and held[member.index] and self._may(kind, member, held, ready)
            ]
            if able:
                (member,) = self._rng.choices(able, [len(held[member.index]) for member in able])
                return member, held[member.index]
            await asyncio.sleep(LOOK_AGAIN_S)

    def _may(self, kind: Kind, member: Member, held: dict[int, set[str]], ready: set[int]) -> bool:
        if kind == "engine SIGKILL":
            # The third death of an engine with the same jobs is blamed on one of them, as it should be.
            return not held[member.index] & member.held_at_engine_kill
        return len(ready) > 1

    def _hit(self, kind: Kind, member: Member, held: set[str], lease_s: float) -> None:
        jobs = [self._ledger.by_entry[entry] for entry in held if entry in self._ledger.by_entry]
        blow = Blow(kind, time.monotonic(), jobs)
        match kind:
            case "SIGKILL":
                member.leaving = True
                member.signal(signal.SIGKILL)
            case "SIGTERM":
                member.leaving = True
                member.signal(signal.SIGTERM)
            case "SIGSTOP":
                member.stopped = True
                member.signal(signal.SIGSTOP, group=True)
                self._at_length(self._thaw(member, lease_s + self._rng.uniform(0.5, 2.0)))
            case _:
                engine = member.engine()
                if engine is None:
                    return
                member.held_at_engine_kill = held
                try:
                    engine.kill()
                except psutil.NoSuchProcess:
                    return
        self.blows.append(blow)

    async def _thaw(self, member: Member, after_s: float) -> None:
        await asyncio.sleep(after_s)
        member.signal(signal.SIGCONT, group=True)
        member.stopped = False

    async def _kill_server(self) -> None:
        open_jobs = [record.job_id for record in self._ledger.records.values() if record.ended_at is None]
        blow = Blow("server SIGKILL", time.monotonic(), open_jobs)
        await asyncio.to_thread(self._server.kill)
        await asyncio.sleep(self._rng.uniform(0.0, 0.5))
        await asyncio.to_thread(self._server.start)
        blow.back_at = time.monotonic()
        self.blows.append(blow)
