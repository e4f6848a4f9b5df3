"""The asynchronous client: put jobs in, follow them, get their answers, cancel them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Final, Self

from redis.asyncio import Redis

from penstock.batch import Batch, create
from penstock.cancel import cancel
from penstock.enqueue import CHUNK_JOBS, Call, Chunk, as_job, cut, enqueue, enqueue_all
from penstock.errors import JobFailed, JobLost, ResultTimeout, ServerUnavailable
from penstock.follower import Entry, Follower, Subscription, is_terminal
from penstock.keys import DEFAULT_LANE, DEFAULT_SHARD, JobId, Keys, check_lane
from penstock.link import Link
from penstock.messages import Done, Event, Failed, Job, decode_event, encode_event, encode_job
from penstock.status import Ended, Expired, JobStatus, Lost, Unknown, read_status

FIRST_CHECK_S: Final = 1.0
LONGEST_CHECK_S: Final = 30.0
"""A follower that hears nothing asks for the job's status after the first, then ever more rarely."""

_LOST: Final = {
    Expired: "is gone: its result expired or was deleted, or the server lost data; "
    "a batch's row ends in the batch's done stream",
    Lost: "is lost: the server has parts of it, but nothing will ever finish it",
    Unknown: "is unknown: the server never gave out this id, or has lost everything since",
}


class Client:
    """A client of one queue. Safe to use from many tasks of one event loop.

    Use it as an async context manager, or call `aclose` at the end. Every method may be cancelled at any
    time; a cancelled `submit` may or may not have been accepted. Exceptions are those of `penstock.errors`;
    every method but `aclose` may raise `ServerError`.
    """

    def __init__(self, server: str | Redis, shard: str = DEFAULT_SHARD) -> None:
        """Connect at first use.

        Args:
            server: a `redis://`, `rediss://` or `unix://` URL, or a client of `redis.asyncio`, whose
                connection settings are copied.
            shard: the queue's name in its keys.
        """
        self._link = Link(server)
        self._keys = Keys(shard)
        self._follower = Follower(self._link)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Whoever still waits on this client gets a RuntimeError."""
        await self._follower.aclose()
        await self._link.aclose()

    async def submit(self, job: Job | str, lane: str = DEFAULT_LANE) -> str:
        """Enqueue one job, or one prompt, and give its id.

        Raises:
            InvalidJob: nothing was enqueued.
            BatchUnknown: the job names a batch that does not exist; nothing was enqueued.
            ServerFull: the server has no memory left; nothing was enqueued.
            ServerUnavailable: the message says whether the job may have been accepted all the same.
            ValueError: the lane's name is not one.
        """
        job = as_job(job, None)
        chunk = Chunk(job.batch, [encode_job(job)])
        return (await enqueue(self._link, Call(self._keys, check_lane(lane), chunk)))[0]

    async def submit_many(
        self,
        jobs: Iterable[Job | str],
        lane: str = DEFAULT_LANE,
        batch: str | None = None,
        chunk: int = CHUNK_JOBS,
    ) -> list[str]:
        """Enqueue many jobs, in order, and give their ids.

        `jobs` is read as it is sent. The jobs of one chunk are enqueued all or none; an exception's
        `accepted` has the ids of those that were in before it.

        Args:
            batch: the batch that all jobs become rows of.
            chunk: jobs per call of the server; 1 or more.

        Raises:
            InvalidJob: a job is bad; those before it are enqueued.
            ServerError: as `submit`, of the chunks under way.
            ValueError: the lane's name is not one, or `chunk` is less than 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be 1 or more")
        check_lane(lane)
        chunks = cut(jobs, batch, chunk)
        return await enqueue_all(self._link, (Call(self._keys, lane, chunk) for chunk in chunks))

    async def result(self, job_id: str, timeout: float | None = None) -> Done:  # noqa: ASYNC109 - the common name
        """Wait for a job's end and give its outcome.

        A server that restarts or cannot be reached is waited for like the job itself. The end of a batch's
        row is in the batch's done stream instead, and only there.

        Args:
            timeout: seconds to wait; None waits as long as there is something to wait for.

        Raises:
            JobFailed: the job ended with a `failed` event.
            JobLost: the server knows the job no more.
            ResultTimeout: the job goes on; ask again.
            InvalidJobId: the text is not a job id.
        """
        event: Event | None = None
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                async for event_id, data in self._entries(job_id, "0-0"):
                    if is_terminal(event_id):
                        event = decode_event(data)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ResultTimeout(f"job {job_id} has not ended within {timeout:g} s; it goes on") from None
        if isinstance(event, Failed):
            raise JobFailed(job_id, event.error)
        assert isinstance(event, Done)
        return event

    async def stream(self, job_id: str, after: str = "0-0") -> AsyncGenerator[tuple[str, Event], None]:
        """Follow a job: pairs of event id and event, from behind `after`, up to the terminal event.

        An event id that was seen can be given as `after` at any later time, to this or another client, to
        go on from there. Only jobs with `stream=True` have `tokens` events.

        Raises:
            JobLost: the server knows the job no more.
            InvalidJobId: the text is not a job id.
            ValueError: `after` is not an event id.
        """
        async with aclosing(self._entries(job_id, after)) as entries:
            async for event_id, data in entries:
                yield event_id, decode_event(data)

    async def status(self, job_id: str) -> JobStatus:
        """Say where a job is.

        Raises:
            InvalidJobId: the text is not a job id.
        """
        parsed = JobId.parse(job_id)
        return await self._link.patiently(lambda: read_status(self._link, self._keys, parsed))

    async def cancel(self, job_id: str) -> bool:
        """End a job as `cancelled`, at once, whether or not someone works on it.

        Returns:
            Whether this call cancelled it; False where it had ended already or never was.

        Raises:
            ServerUnavailable: the job may or may not have been cancelled; asking again is safe.
            InvalidJobId: the text is not a job id.
        """
        return await cancel(self._link, self._keys, JobId.parse(job_id))

    async def create_batch(self, batch_id: str | None = None) -> Batch:
        """Open a batch of jobs.

        Args:
            batch_id: 1 to 64 letters, digits, `_` and `-`; by default a random one.

        Raises:
            BatchExists: the name is taken.
            ValueError: the name is not one.
        """
        return await create(self._link, self._keys, batch_id)

    def batch(self, batch_id: str) -> Batch:
        """Give a handle on a batch that exists; the server is not asked.

        Raises:
            ValueError: the name is not one.
        """
        return Batch(self._link, self._keys, batch_id)

    async def _entries(self, job_id: str, after: str) -> AsyncGenerator[Entry, None]:
        """Entries of a job's result stream, up to the terminal one."""
        parsed = JobId.parse(job_id)
        if is_terminal(after):
            return
        with self._follower.follow(self._keys.result(job_id), after) as subscription:
            wait_s = FIRST_CHECK_S
            while True:
                # Spread, so that a thousand followers don't all ask in the same moment.
                entries = await subscription.next(wait_s * random.uniform(0.8, 1.2))
                if not entries:
                    wait_s = min(wait_s * 2, LONGEST_CHECK_S)
                    entries = await self._check(parsed, subscription)
                for entry in entries:
                    yield entry
                    if is_terminal(entry[0]):
                        return

    async def _check(self, job_id: JobId, subscription: Subscription) -> list[Entry]:
        """Make sure that there is something to wait for.

        Raises:
            JobLost: there is not.
        """
        with suppress(ServerUnavailable):  # the follower is trying to reach it as well
            status = await read_status(self._link, self._keys, job_id)
            entries = subscription.ready()
            if not entries and isinstance(status, Expired | Lost | Unknown):
                raise JobLost(f"job {job_id} {_LOST[type(status)]}")
            if not entries and isinstance(status, Ended) and subscription.is_past(status.event_id):
                # The server lost its last second, and the job ended earlier the second time.
                return [(status.event_id, encode_event(status.event))]
            return entries
        return []
