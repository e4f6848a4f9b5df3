"""Looks at what the server holds once it is too late for anyone to change it, and removes what was right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from penstock.errors import ServerUnavailable
from penstock.keys import GROUP, Keys
from penstock.link import Link
from penstock.messages import Event, decode_event
from tests.storm.clients import Clients
from tests.storm.fleet import LANE
from tests.storm.ledger import Ledger

T = TypeVar("T")

EVERY_S = 3.0
KEYS = Keys()


class Auditor:
    """Audits each job `settle_s` after its end: longer than anyone can be away and come back to write."""

    def __init__(self, link: Link, ledger: Ledger, clients: Clients, settle_s: float) -> None:
        self._link = link
        self._ledger = ledger
        self._clients = clients
        self._settle_s = settle_s

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.audit(time.monotonic() - self._settle_s)

    async def audit(self, ended_before: float) -> None:
        """All jobs that ended before then and were not looked at yet."""
        for record in list(self._ledger.records.values()):
            if record.events is not None and record.ended_at is not None and record.ended_at < ended_before:
                key = KEYS.result(record.job_id)
                stored = await self._patiently("XRANGE", key, "-", "+")
                self._ledger.audit(record, [_event(entry) for entry in stored])
                await self._patiently("DEL", key)

    async def finish(self) -> None:
        """At the very end, with no consumer left: everything, and that nothing else is there."""
        await self.audit(float("inf"))
        for batch in self._clients.batches:
            counts = await batch.counts()
            rows = await self._patiently("XLEN", KEYS.batch_done(batch.id))
            if (counts.completed, counts.failed, counts.outstanding) != (rows, 0, 0):
                self._ledger.blame("doubled", batch.id, f"its counts are {counts}, and {rows} rows ended")
            await batch.delete()
        if left := await self._patiently("XLEN", KEYS.jobs(LANE)):
            self._ledger.blame("lost", LANE, f"{left} jobs are left that nobody waits for")
        pending = await self._patiently("XPENDING", KEYS.jobs(LANE), GROUP)
        if pending[0]:
            self._ledger.blame("lost", LANE, f"leases without jobs: {pending}")
        for key in await self._patiently("KEYS", KEYS.result("*")):
            self._ledger.blame("doubled", key.decode(), "a result that came after its job's end was read")

    async def _patiently(self, *args: str) -> Any:
        return await patiently(lambda: self._link.command(*args))


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Until the server is there."""
    while True:
        try:
            return await call()
        except ServerUnavailable:
            await asyncio.sleep(0.1)


def _event(entry: list[Any]) -> tuple[str, Event]:
    entry_id, fields = entry
    return entry_id.decode(), decode_event(fields[fields.index(b"event") + 1])
