"""Where a consumer can be made to kill itself: points between it and the server, each by its name."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from redis.asyncio.connection import AbstractConnection

from consumer.broker import Broker
from consumer.lease import Ending, Lease, Progress
from penstock.keys import Keys
from penstock.link import Link, send
from penstock.messages import Heartbeat
from penstock.scripts import Argument, Script

Point = Literal[
    "after claim",
    "after admit",
    "inside publish",
    "after publish",
    "before commit",
    "inside commit",
    "after commit",
    "after renew",
    "in drain",
    "before leaving",
    "after leaving",
]
DRAINING: Final[tuple[Point, ...]] = ("in drain", "before leaving", "after leaving")
"""Points that a consumer reaches only once it was asked to stop."""


def die() -> None:
    """SIGKILL to this process: nothing is cleaned up, nothing is said."""
    os.kill(os.getpid(), signal.SIGKILL)


class OneWayLink:
    """A link on which a script is sent, and the process dies before the reply is read.

    The whole call is in the server's socket by then, so the server carries it out.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[AbstractConnection, None]:
        """As the link's own."""
        async with self._link.connection() as connection:
            yield connection

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Send it by its source, which no server can lack, and die."""
        async with self._link.connection() as connection:
            await send(connection, "EVAL", script.source, len(keys), *keys, *args)
            die()


class DyingBroker(Broker):
    """Kills its process when `point` is reached for the `nth` time. See `dying_at`."""

    point: Point
    nth: int

    def __init__(self, link: Link, keys: Keys, consumer: str, lease_ms: int) -> None:
        super().__init__(link, keys, consumer, lease_ms)
        self._times = 0
        self._admitting = False
        self._draining = False

    async def claim(self, credit: int) -> list[Lease]:
        self._admitted()
        leases = await super().claim(credit)
        if leases:
            self._reach("after claim")
            self._admitting = True
        return leases

    async def wait_for_jobs(self, block_ms: int) -> None:
        self._admitted()
        await super().wait_for_jobs(block_ms)

    async def publish(self, progress: Sequence[Progress]) -> list[Lease]:
        self._cut_off_at("inside publish")
        lost = await super().publish(progress)
        self._reach("after publish")
        if self._draining:
            self._reach("in drain")
        return lost

    async def commit(self, endings: Sequence[Ending]) -> list[Lease]:
        self._reach("before commit")
        if self._draining:
            self._reach("in drain")
        self._cut_off_at("inside commit")
        lost = await super().commit(endings)
        self._reach("after commit")
        return lost

    async def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        lost = await super().renew(leases)
        if leases:
            self._reach("after renew")
        return lost

    async def heartbeat(self, heartbeat: Heartbeat) -> None:
        self._draining = heartbeat.phase == "draining"
        await super().heartbeat(heartbeat)

    async def retire(self, names: str, *, spare: str = "") -> int:
        leaving = names == self.consumer
        if leaving:
            self._reach("before leaving")
        released = await super().retire(names, spare=spare)
        if leaving:
            self._reach("after leaving")
        return released

    def _admitted(self) -> None:
        """Whoever asks for more has handed what it claimed last to the engine."""
        if self._admitting:
            self._admitting = False
            self._reach("after admit")

    def _reach(self, point: Point) -> None:
        if self._is_due(point):
            die()

    def _cut_off_at(self, point: Point) -> None:
        if self._is_due(point):
            self._link = OneWayLink(self._link)  # type: ignore[assignment]

    def _is_due(self, point: Point) -> bool:
        if point != self.point:
            return False
        self._times += 1
        return self._times == self.nth


def dying_at(point: Point, nth: int) -> type[Broker]:
    """A broker that kills its process when `point` is reached for the `nth` time."""
    return type("DyingBroker", (DyingBroker,), {"point": point, "nth": nth})
