"""Writes events: collects what the engine loop hands over and sends it in few calls, through any outage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from consumer.broker import Broker
from consumer.job_counts import JobCounts
from consumer.lease import Ending, Lease, Progress
from consumer.observer import NOBODY, Observer
from consumer.outage import Outage
from penstock.backoff import pauses
from penstock.errors import ServerError

log = logging.getLogger(__name__)


class Publisher:
    """What is handed over stays here until the server has taken it or has said that the lease is lost."""

    def __init__(
        self,
        broker: Broker,
        held: Callable[[], Sequence[Lease]],
        on_lost: Callable[[Lease], None],
        outage: Outage,
        retry_delay_ms: Callable[[int], int],
        observer: Observer = NOBODY,
    ) -> None:
        """Write by this broker.

        Args:
            held: all leases that the consumer believes to hold.
            retry_delay_ms: how long a job waits that has failed once more, by how often it had before.
        """
        self._broker = broker
        self._held = held
        self._on_lost = on_lost
        self._outage = outage
        self._retry_delay_ms = retry_delay_ms
        self._observer = observer
        self.counts = JobCounts()
        """Of the jobs whose ends were written."""
        self._progress: list[Progress] = []
        self._endings: list[Ending] = []
        self._failures: list[Ending] = []
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def unwritten(self) -> list[Lease]:
        """Leases of ended jobs whose ends are not written yet: they must be renewed until they are."""
        return [ending.lease for ending in (*self._endings, *self._failures)]

    def hand_over(self, progress: Iterable[Progress], endings: Iterable[Ending]) -> None:
        """Take events to write. A job's progress is written before its ending."""
        self._progress += progress
        for ending in endings:
            (self._endings if ending.failure is None else self._failures).append(ending)
        if self._progress or self._endings or self._failures:
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
        while self._progress or self._endings or self._failures:
            progress, endings = list(self._progress), list(self._endings)
            lost = await self._broker.publish(progress) if progress else []
            del self._progress[: len(progress)]
            if progress:
                self._observer.published(progress)
            # The end of a run that has just lost its stream must not be written behind the hole.
            endings = _without(endings, lost)
            self._endings = _without(self._endings, lost)
            self._failures = _without(self._failures, lost)
            await self._give_up(lost)
            lost = await self._broker.commit(endings) if endings else []
            del self._endings[: len(endings)]
            if endings:
                written = _without(endings, lost) if lost else endings
                self.counts.ended(written)
                self._observer.committed(written)
            await self._give_up(lost + await self._fail())
        self._idle.set()

    async def _give_up(self, lost: Sequence[Lease]) -> None:
        if not lost:
            return
        first = lost[0].key
        words = "%d leases are lost, %s first: the jobs run or end elsewhere"
        log.warning(words, len(lost), first, extra={"job": first})
        for lease in lost:
            self._on_lost(lease)
        # Where only the stream is gone, the lease is still ours: others may have it at once. But a server
        # that has lost its last second may have handed it to us again, by the same token, for a new run.
        held = {(lease.job_id, lease.deliveries) for lease in self._held()}
        await self._broker.release([lease for lease in lost if (lease.job_id, lease.deliveries) not in held])

    async def _fail(self) -> list[Lease]:
        """Charge failed attempts, one by one, as they are few; gives leases that were lost."""
        lost: list[Lease] = []
        while self._failures:
            ending = self._failures[0]
            assert ending.failure is not None
            delay_ms = self._retry_delay_ms(ending.lease.num_failures)
            outcome = await self._broker.fail(ending, delay_ms)
            del self._failures[0]
            if outcome == "dead":
                self.counts.ended([ending])
            self._observer.failed(ending, outcome)
            key, words = ending.lease.key, ending.failure.error.message
            match outcome:
                case "retry":
                    after_s = delay_ms / 1000
                    log.warning(
                        "job %s failed and is tried again in %.1f s: %s",
                        key,
                        after_s,
                        words,
                        extra={"job": key},
                    )
                case "dead":
                    log.warning("job %s failed for the last time: %s", key, words, extra={"job": key})
                case "lost":
                    lost.append(ending.lease)
        return lost


def _without(endings: Sequence[Ending], lost: Sequence[Lease]) -> list[Ending]:
    gone = {lease.request_id for lease in lost}
    return [ending for ending in endings if ending.lease.request_id not in gone]
