"""Writes events: collects what the engine loop hands over and sends it in few calls, through any outage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from consumer.broker import Broker
from consumer.lease import Ending, Lease, Progress
from consumer.outage import Outage
from penstock.backoff import pauses
from penstock.errors import ServerError

log = logging.getLogger(__name__)


class Publisher:
    """What is handed over stays here until the server has taken it or has said that the lease is lost."""

    def __init__(
        self,
        broker: Broker,
        on_lost: Callable[[Lease], None],
        outage: Outage,
    ) -> None:
        self._broker = broker
        self._on_lost = on_lost
        self._outage = outage
        self._progress: list[Progress] = []
        self._endings: list[Ending] = []
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def unwritten(self) -> list[Lease]:
        """Leases of ended jobs whose ends are not written yet: they must be renewed until they are."""
        return [ending.lease for ending in self._endings]

    def hand_over(self, progress: Iterable[Progress], endings: Iterable[Ending]) -> None:
        """Take events to write. A job's progress is written before its ending."""
        self._progress += progress
        self._endings += endings
        if self._progress or self._endings:
            self._idle.clear()
            self._work.set()

    async def drained(self) -> None:
        """Wait until everything is written."""
        await self._idle.wait()

    async def run(self) -> None:
        """Write for ever, whatever the server does."""
        waits = pauses()
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._write()
                waits = pauses()
                self._outage.worked("events")
            except ServerError as error:
                self._outage.failed("events", error)
                self._work.set()
                await asyncio.sleep(next(waits))

    async def _write(self) -> None:
        # Taken off only once written: a call that fails leaves everything where it was, and a repeat of what
        # did arrive is refused by the fence (or, for tokens, by the stream's ids).
        while self._progress or self._endings:
            progress, endings = list(self._progress), list(self._endings)
            lost = await self._broker.publish(progress) if progress else []
            del self._progress[: len(progress)]
            lost += await self._broker.commit(endings) if endings else []
            del self._endings[: len(endings)]
            if lost:
                log.warning(
                    "%d leases are lost, %s first: the jobs run or end elsewhere", len(lost), lost[0].key
                )
                for lease in lost:
                    self._on_lost(lease)
                # Where only the stream is gone, the lease is still ours: others may have it at once.
                await self._broker.release(lost)
        self._idle.set()
