"""The clients of a storm: each has one thing under way at a time, and looks closely at what comes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final, Literal, TypeVar

import msgspec

from penstock.batch import Batch
from penstock.client import Client
from penstock.errors import CursorMoved, JobFailed, JobLost, ServerUnavailable
from penstock.follower import is_terminal
from penstock.messages import Done, Event, Failed
from tests.storm.ledger import Ledger
from tests.storm.pool import Kind, Question, Spec

T = TypeVar("T")

WEIGHTS: Final[dict[Kind | Literal["cancel", "batch"], int]] = {
    "short": 200,
    "long": 14,
    "samples": 12,
    "plain": 6,
    "cancel": 10,
    "batch": 8,
}
"""What a client does next."""
ROWS: Final = 6
ANSWER_TIMEOUT_S: Final = 240.0
"""A job that has not ended by then is lost."""
HOP: Final = 0.05
"""Chance at each event that its subscriber goes on through another connection."""


class Clients:
    """`count` clients of one queue."""

    def __init__(self, url: str, questions: list[Question], ledger: Ledger, rng: random.Random) -> None:
        self._connections = [Client(url) for _ in range(4)]
        self._questions: dict[Kind, list[Question]] = {}
        for question in questions:
            self._questions.setdefault(question.spec.kind, []).append(question)
        self._ledger = ledger
        self._rng = rng
        self.batches: list[Batch] = []
        """Done with, and not yet audited."""
        self._num_submitted = 0

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            await connection.aclose()

    async def run(self, count: int, stop: asyncio.Event) -> None:
        """Ask and listen until `stop`; what is under way then is waited for."""
        await asyncio.gather(*(self._one_after_another(stop) for _ in range(count)))

    async def answers(self, specs: list[Spec]) -> list[Done]:
        """What each of these jobs gets."""
        ids = [await self._client.submit(spec.job) for spec in specs]
        return [await self._client.result(job_id, ANSWER_TIMEOUT_S) for job_id in ids]

    async def _one_after_another(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            (what,) = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
            match what:
                case "batch":
                    await self._batch()
                case "cancel":
                    await self._ask(self._draw("long", "samples", "plain"), cancel=True)
                case kind:
                    await self._ask(self._draw(kind), cancel=False)

    def _draw(self, *kinds: Kind) -> Question:
        return self._rng.choice(self._questions[self._rng.choice(kinds)])

    @property
    def _client(self) -> Client:
        return self._rng.choice(self._connections)

    # One job

    async def _ask(self, question: Question, *, cancel: bool) -> None:
        job_id = await self._submit(question)
        record = self._ledger.accepted(job_id, question)
        cancelling = asyncio.create_task(self._cancel(job_id)) if cancel else None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                listen = self._follow if question.spec.job.stream else self._result
                events = await listen(job_id)
        except (JobLost, TimeoutError) as error:
            self._ledger.blame("lost", job_id, repr(error))
            return
        cancelled = False if cancelling is None else await cancelling
        self._ledger.close(record, events, cancelled=cancelled)

    async def _submit(self, question: Question) -> str:
        self._num_submitted += 1
        key = f"storm-{self._num_submitted}"
        return await self._patiently(
            lambda: self._client.submit(question.spec.job, idempotency_key=key, idempotency_ttl_s=600)
        )

    async def _cancel(self, job_id: str) -> bool | None:
        """Cancel after a while; whether it did, None where it may have."""
        await asyncio.sleep(self._rng.uniform(0.0, 2.0))
        unsure = False
        while True:
            try:
                cancelled = await self._client.cancel(job_id)
                return None if unsure else cancelled
            except ServerUnavailable:
                unsure = True
                await asyncio.sleep(0.1)

    async def _result(self, job_id: str) -> list[tuple[str, Event]]:
        try:
            event: Event = await self._client.result(job_id)
        except JobFailed as failed:
            event = Failed(error=failed.error)
        return [("", event)]

    async def _follow(self, job_id: str) -> list[tuple[str, Event]]:
        """All events, across connections."""
        seen: list[tuple[str, Event]] = []
        while True:
            after = seen[-1][0] if seen else "0-0"
            async with aclosing(self._client.stream(job_id, after)) as stream:
                async for event_id, event in stream:
                    seen.append((event_id, event))
                    if is_terminal(event_id):
                        return seen
                    if self._rng.random() < HOP:
                        break

    # A batch

    async def _batch(self) -> None:
        questions = [self._draw("short", "short", "short", "samples", "plain") for _ in range(ROWS)]
        batch = await self._patiently(self._client.create_batch)
        jobs = [
            msgspec.structs.replace(question.spec.job, row=row, stream=False)
            for row, question in enumerate(questions)
        ]
        with contextlib.suppress(CursorMoved):  # a first call did arrive; its ids come with the rows' ends
            ids = await self._patiently(lambda: batch.enqueue_rows(jobs, cursor="", new_cursor="all"))
            for job_id, question in zip(ids, questions, strict=True):
                self._ledger.accepted(job_id, question, batch=batch.id)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._collect(batch, questions)
        except TimeoutError:
            self._ledger.blame("lost", batch.id, f"of a batch of {ROWS} some rows never ended")
        self.batches.append(batch)

    async def _collect(self, batch: Batch, questions: list[Question]) -> None:
        seen: set[int] = set()
        async with aclosing(batch.done()) as rows:
            async for row in rows:
                assert row.row is not None
                if row.row in seen:
                    self._ledger.blame("doubled", row.job_id, f"row {row.row} ended twice")
                seen.add(row.row)
                record = self._ledger.records.get(row.job_id)
                if record is None:
                    record = self._ledger.accepted(row.job_id, questions[row.row], batch=batch.id)
                self._ledger.close(record, [("", row.event)], cancelled=False)
                record.events = None
                if len(seen) == len(questions):
                    return

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except ServerUnavailable:
                await asyncio.sleep(0.1)
