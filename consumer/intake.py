"""The intake: claims what the engine can take soon, and admits it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from consumer.broker import Broker
from consumer.checkpoint import PublishedEvent
from consumer.engine_host import EngineHost
from consumer.lease import Lease
from consumer.outage import Outage
from consumer.runs import Runs
from consumer.tokenizer_threads import TokenizerThreads
from penstock.errors import ServerError, ServerUnavailable

_IDLE_BLOCK_MS = 1_000
"""Longest wait for new jobs before expired leases are looked for again."""
_PAUSE_S = 0.25
"""Between two claims where waiting is refused."""


class Intake:
    """Claims by credit: never more than can be admitted soon."""

    def __init__(
        self,
        broker: Broker,
        engine: EngineHost,
        threads: TokenizerThreads,
        runs: Runs,
        outage: Outage,
        lookahead: int,
    ) -> None:
        """Nothing is claimed before `run`.

        Args:
            lookahead: jobs to claim beyond the sequences that run.
        """
        self._broker = broker
        self._engine = engine
        self._threads = threads
        self._runs = runs
        self._outage = outage
        self._lookahead = lookahead
        self._cancelled: set[str] = set()
        self._samples_per_job = 1
        self._unanswered = False
        self.admitting: list[Lease] = []
        """Claimed, and not running yet."""

    async def run(self) -> None:
        """Claim for ever."""
        while True:
            credit = self._credit()
            if credit <= 0:
                self._runs.has_room.clear()
                await self._runs.has_room.wait()
                continue
            self.admitting = await self._outage.patiently(lambda credit=credit: self._claim(credit))
            claimed = len(self.admitting)
            if claimed:
                self._runs.observer.claimed(self.admitting)
                await self._admit(last=claimed < credit)
                if claimed == credit:
                    continue
            else:
                self._runs.end_backlog()
            await self._wait()

    def cancel(self, keys: set[str]) -> None:
        """These jobs were cancelled: those that are being admitted will not run."""
        self._cancelled |= keys & {lease.key for lease in self.admitting}

    async def _claim(self, credit: int) -> list[Lease]:
        """Claim. What a claim took whose answer never came is given back first, not left to its lease."""
        if self._unanswered:
            await self._broker.release_strays(lambda: self._runs.held)
            self._unanswered = False
        try:
            return await self._broker.claim(credit)
        except ServerUnavailable:
            self._unanswered = True
            raise

    def _credit(self) -> int:
        """How many more jobs the engine can admit soon, if they have as many samples as the last ones."""
        room = self._runs.room(self._lookahead)
        return room if room <= 0 else max(1, room // self._samples_per_job)

    async def _wait(self) -> None:
        """Until there may be something to claim."""
        try:
            await self._broker.wait_for_jobs(self._outage.block_ms(_IDLE_BLOCK_MS))
        except ServerError as error:
            # Not repeated: the claim goes round a key that is no lane, and waits for a server that is away.
            self._outage.failed("waiting", error)
            await asyncio.sleep(_PAUSE_S)
        else:
            self._outage.worked("waiting")

    async def _admit(self, *, last: bool) -> None:
        published = await self._published([lease for lease in self.admitting if lease.deliveries > 1])
        served = self._engine.served
        if served is None:  # the engine died just now
            await self._outage.patiently(lambda: self._broker.release(self.admitting))
            self.admitting = []
            return
        jobs, endings = await self._threads.admit(served, self.admitting, published)
        self.admitting = []
        self._runs.refuse(endings)
        jobs = [job for job in jobs if job.lease.key not in self._cancelled]
        self._cancelled.clear()
        if jobs:
            self._samples_per_job = max(1, sum(job.num_rows for job in jobs) // len(jobs))
        self._runs.start(jobs, last=last)

    async def _published(self, leases: Sequence[Lease]) -> dict[str, Sequence[PublishedEvent]]:
        """By request id, what earlier runs of jobs have published."""

        def read(lease: Lease) -> Awaitable[Sequence[PublishedEvent]]:
            return self._outage.patiently(lambda: self._broker.published(lease.job_id))

        found = await asyncio.gather(*map(read, leases))
        return {lease.request_id: events for lease, events in zip(leases, found, strict=True)}
