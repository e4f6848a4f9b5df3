"""The synchronous client: the asynchronous one, on an event loop of its own in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from penstock.batch import Batch, BatchCounts, FinishedRow
from penstock.client import Client
from penstock.dead import DeadLetter
from penstock.enqueue import CHUNK_JOBS, IDEMPOTENCY_TTL_S
from penstock.errors import PenstockError
from penstock.keys import DEFAULT_LANE, DEFAULT_SHARD
from penstock.lanes import Lane, LaneSettings
from penstock.messages import Done, Event, Job
from penstock.status import JobStatus

T = TypeVar("T")

SLICE_CHUNKS = 20
"""Chunks that are taken from the caller's iterable, in the caller's thread, and handed over at once."""


class _Loop:
    """A running event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="penstock-client", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end, from any thread but the loop's own. An interrupt cancels the work.

        Raises:
            RuntimeError: the client is closed.
        """
        with self._lock:
            if self._closed or threading.current_thread() is self._thread:
                work.close()
                raise RuntimeError("the client is closed, or is used from its own event loop")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("the client was closed") from None
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """Step through an asynchronous generator."""

        async def step() -> tuple[T] | None:
            try:
                return (await anext(source),)
            except StopAsyncIteration:
                return None

        try:
            while (item := self.run(step())) is not None:
                yield item[0]
        finally:
            # Not waited for: this may run in any thread, even the loop's own, by garbage collection.
            with self._lock:
                if not self._closed:
                    asyncio.run_coroutine_threadsafe(source.aclose(), self._loop)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run `last`, end what still runs, and stop. A second call does nothing."""
        with self._lock:
            if self._closed:
                last.close()
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        await last
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=0.5)  # whoever waits hears of the end before being cancelled
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


class SyncClient:
    """A client of one queue for code without asyncio. Safe to use from many threads.

    Every method does what `Client`'s method of that name does, and raises the same; see there. Use it as a
    context manager, or call `close` at the end.
    """

    def __init__(self, server: str, shard: str = DEFAULT_SHARD) -> None:
        """Connect at first use; `server` is a `redis://`, `rediss://` or `unix://` URL."""
        self._loop = _Loop()
        try:
            self._client = self._loop.run(_make(server, shard))
        except BaseException:
            self._loop.close(_nothing())
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end the thread. Whoever still waits gets an error."""
        self._loop.close(self._client.aclose())

    def submit(
        self,
        job: Job | str,
        lane: str = DEFAULT_LANE,
        *,
        idempotency_key: str | None = None,
        idempotency_ttl_s: float = IDEMPOTENCY_TTL_S,
    ) -> str:
        """Enqueue one job, or one prompt, and give its id; that of an earlier one under the same key."""
        submitting = self._client.submit(
            job, lane, idempotency_key=idempotency_key, idempotency_ttl_s=idempotency_ttl_s
        )
        return self._loop.run(submitting)

    def submit_many(
        self,
        jobs: Iterable[Job | str],
        lane: str = DEFAULT_LANE,
        batch: str | None = None,
        chunk: int = CHUNK_JOBS,
        idempotency_keys: Iterable[str] | None = None,
    ) -> list[str]:
        """Enqueue many jobs, in order, and give their ids. The arguments are read in the calling thread."""
        keys = None if idempotency_keys is None else iter(idempotency_keys)

        def submit(part: list[Job | str]) -> list[str]:
            keys_of = None if keys is None else list(islice(keys, len(part)))
            return self._loop.run(self._client.submit_many(part, lane, batch, chunk, keys_of))

        return _in_slices(jobs, chunk, submit)

    def result(self, job_id: str, timeout: float | None = None) -> Done:
        """Wait for a job's end, `timeout` seconds at most, and give its outcome."""
        return self._loop.run(self._client.result(job_id, timeout))

    def stream(self, job_id: str, after: str = "0-0") -> Iterator[tuple[str, Event]]:
        """Follow a job: pairs of event id and event, from behind `after`, up to the terminal event."""
        return self._loop.iterate(self._client.stream(job_id, after))

    def status(self, job_id: str) -> JobStatus:
        """Say where a job is."""
        return self._loop.run(self._client.status(job_id))

    def cancel(self, job_id: str) -> bool:
        """End a job as `cancelled`, at once; False where it had ended already or never was."""
        return self._loop.run(self._client.cancel(job_id))

    def create_batch(self, batch_id: str | None = None) -> SyncBatch:
        """Open a batch of jobs."""
        return SyncBatch(self._loop, self._loop.run(self._client.create_batch(batch_id)))

    def batch(self, batch_id: str) -> SyncBatch:
        """Give a handle on a batch that exists; the server is not asked."""
        return SyncBatch(self._loop, self._client.batch(batch_id))

    def lanes(self) -> list[Lane]:
        """The declared lanes, by name: what waits in each, and its settings."""
        return self._loop.run(self._client.lanes())

    def queue_settings(self) -> LaneSettings:
        """Settings of the whole queue; the weight means nothing there."""
        return self._loop.run(self._client.queue_settings())

    def set_lane(self, lane: str | None, **settings: float | bool | None) -> LaneSettings:
        """Set some of a lane's `LaneSettings`, of the whole queue's for None; a value None takes one back."""
        return self._loop.run(self._client.set_lane(lane, **settings))

    def pause(self, lane: str | None = None) -> None:
        """Have consumers take nothing more from a lane, or from the whole queue. What runs goes on."""
        self._loop.run(self._client.pause(lane))

    def resume(self, lane: str | None = None) -> None:
        """Undo `pause` of the same lane, or of the whole queue."""
        self._loop.run(self._client.resume(lane))

    def dead_letters(self, after: str = "0-0", count: int = 100) -> list[DeadLetter]:
        """Up to `count` dead letters behind the letter `after`, oldest first."""
        return self._loop.run(self._client.dead_letters(after, count))

    def dead_letter(self, letter_id: str) -> DeadLetter:
        """One dead letter."""
        return self._loop.run(self._client.dead_letter(letter_id))

    def requeue(self, letter_id: str) -> str:
        """Make a new job of a dead letter, and give the new job's id."""
        return self._loop.run(self._client.requeue(letter_id))

    def drop(self, letter_id: str) -> bool:
        """Remove a dead letter; whether there was one."""
        return self._loop.run(self._client.drop(letter_id))


class SyncBatch:
    """A handle on one batch. Every method does what `Batch`'s method of that name does; see there."""

    def __init__(self, loop: _Loop, batch: Batch) -> None:
        self._loop = loop
        self._batch = batch
        self.id = batch.id
        self.epoch = batch.epoch

    def submit_many(
        self, jobs: Iterable[Job | str], lane: str = DEFAULT_LANE, chunk: int = CHUNK_JOBS
    ) -> list[str]:
        """Enqueue rows without a cursor. `jobs` is read in the calling thread."""
        return _in_slices(
            jobs, chunk, lambda part: self._loop.run(self._batch.submit_many(part, lane, chunk))
        )

    def enqueue_rows(
        self, jobs: Iterable[Job | str], *, cursor: str, new_cursor: str, lane: str = DEFAULT_LANE
    ) -> list[str]:
        """Enqueue the next rows and move the batch's cursor, both or neither."""
        rows = list(jobs)
        return self._loop.run(self._batch.enqueue_rows(rows, cursor=cursor, new_cursor=new_cursor, lane=lane))

    def cursor(self) -> str:
        """Where the batch's driver is; empty before its first rows."""
        return self._loop.run(self._batch.cursor())

    def counts(self) -> BatchCounts:
        """How many rows there are, and how they ended."""
        return self._loop.run(self._batch.counts())

    def done(self, after: str = "0-0", block_s: float | None = None) -> Iterator[FinishedRow]:
        """Give finished rows in the order in which they ended, from behind the entry `after`."""
        return self._loop.iterate(self._batch.done(after, block_s))

    def finished(self, after: str = "0-0", block_s: float | None = None) -> list[FinishedRow]:
        """Some hundreds of finished rows at most, from behind the entry `after`."""
        return self._loop.run(self._batch.finished(after, block_s))

    def take(self, lease_s: float = 0.0, *, restart: bool = False, expected: int | None = None) -> SyncBatch:
        """Take the batch, and give a handle that drives it."""
        return SyncBatch(
            self._loop, self._loop.run(self._batch.take(lease_s, restart=restart, expected=expected))
        )

    def renew(self, lease_s: float) -> None:
        """Keep what `take` gave for so long from now."""
        self._loop.run(self._batch.renew(lease_s))

    def trim(self, upto: str) -> int:
        """Remove finished rows up to and with the entry `upto`; gives how many."""
        return self._loop.run(self._batch.trim(upto))

    def delete(self) -> None:
        """Delete the batch: its counts and its finished rows."""
        self._loop.run(self._batch.delete())


async def _make(server: str, shard: str) -> Client:
    return Client(server, shard)


async def _nothing() -> None:
    pass


def _in_slices(
    jobs: Iterable[Job | str], chunk: int, submit: Callable[[list[Job | str]], list[str]]
) -> list[str]:
    """Hand the caller's jobs over in slices, so that only the caller's thread runs the caller's iterable."""
    source = iter(jobs)
    ids: list[str] = []
    while part := list(islice(source, SLICE_CHUNKS * max(chunk, 1))):
        try:
            ids += submit(part)
        except PenstockError as error:
            error.accepted = [*ids, *error.accepted]
            raise
    return ids
