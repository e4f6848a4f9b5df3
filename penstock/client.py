"""The asynchronous client: put jobs in, follow them, get their answers, cancel them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, nullcontext, suppress
from types import TracebackType
from typing import Final, Self

from redis.asyncio import Redis

from penstock.batch import Batch, create
from penstock.cancel import cancel
from penstock.dead import DeadLetter, drop, read_letter, read_letters, requeue
from penstock.enqueue import (
    CHUNK_JOBS,
    IDEMPOTENCY_TTL_S,
    Call,
    Chunk,
    EnqueueHook,
    as_job,
    cut,
    enqueue,
    enqueue_all,
    with_keys,
)
from penstock.errors import JobFailed, JobLost, ResultTimeout, ServerUnavailable
from penstock.follower import Entry, Follower, Subscription, is_terminal, parse_entry_id
from penstock.keys import (
    DEFAULT_LANE,
    DEFAULT_SHARD,
    WHOLE_QUEUE,
    JobId,
    Keys,
    check_idempotency_key,
    check_lane,
)
from penstock.lanes import Lane, LaneSettings, configure, read_lanes
from penstock.link import Link
from penstock.messages import Done, Event, Failed, Job, decode_event, encode_event, encode_job
from penstock.status import Ended, Expired, JobStatus, Lost, Unknown, read_status, read_whether_there

FIRST_CHECK_S: Final = 1.0
LONGEST_CHECK_S: Final = 30.0
"""A follower that hears nothing asks for the job's status after the first, then ever more rarely."""

LONGEST_IDEMPOTENCY_TTL_S: Final = 30 * 86400

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

    def __init__(
        self, server: str | Redis, shard: str = DEFAULT_SHARD, hook: EnqueueHook | None = None
    ) -> None:
        """Connect at first use.

        Args:
            server: a `redis://`, `rediss://` or `unix://` URL, or a client of `redis.asyncio`, whose
                connection settings are copied.
            shard: the queue's name in its keys.
            hook: entered with each job that is enqueued, and left once it is: gives the job to put in its
                place, with a `traceparent` say. Of many jobs, each is entered and left as it is encoded.
        """
        self._link = Link(server)
        self._keys = Keys(shard)
        self._follower = Follower(self._link)
        self._hook: EnqueueHook = nullcontext if hook is None else hook

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

    async def submit(
        self,
        job: Job | str,
        lane: str = DEFAULT_LANE,
        *,
        idempotency_key: str | None = None,
        idempotency_ttl_s: float = IDEMPOTENCY_TTL_S,
    ) -> str:
        """Enqueue one job, or one prompt, and give its id.

        With an idempotency key, a job that was enqueued under it before is not enqueued again: its id is
        given, whatever this job holds. That makes the call safe to repeat, and it repeats itself for some
        seconds where the server cannot be reached.

        Args:
            idempotency_key: 1 to 255 printable ASCII characters without spaces.
            idempotency_ttl_s: how long the key is remembered, in seconds.

        Raises:
            InvalidJob: nothing was enqueued.
            BatchUnknown: the job names a batch that does not exist; nothing was enqueued.
            QueueFull: the lane, or the server (ServerFull), has no room; nothing was enqueued.
            ServerUnavailable: the message says whether the job may have been accepted all the same.
            ValueError: the lane's name, the key or its time is not one.
        """
        with self._hook(as_job(job, None)) as hooked:
            chunk = Chunk(hooked.batch, [encode_job(hooked)])
            if idempotency_key is None:
                return (await enqueue(self._link, Call(self._keys, check_lane(lane), chunk)))[0]
            return await self._submit_once(chunk, lane, idempotency_key, idempotency_ttl_s)

    async def _submit_once(
        self, chunk: Chunk, lane: str, idempotency_key: str, idempotency_ttl_s: float
    ) -> str:
        if not 0.001 <= idempotency_ttl_s <= LONGEST_IDEMPOTENCY_TTL_S:
            raise ValueError(
                f"idempotency_ttl_s is {idempotency_ttl_s:g}; its range: 0.001 to {LONGEST_IDEMPOTENCY_TTL_S}"
            )
        chunk.idempotency_keys = [check_idempotency_key(idempotency_key)]
        chunk.idempotency_ttl_s = idempotency_ttl_s
        call = Call(self._keys, check_lane(lane), chunk)
        return (await self._link.patiently(lambda: enqueue(self._link, call)))[0]

    async def submit_many(
        self,
        jobs: Iterable[Job | str],
        lane: str = DEFAULT_LANE,
        batch: str | None = None,
        chunk: int = CHUNK_JOBS,
        idempotency_keys: Iterable[str] | None = None,
    ) -> list[str]:
        """Enqueue many jobs, in order, and give their ids.

        `jobs` is read as it is sent. The jobs of one chunk are enqueued all or none; an exception's
        `accepted` has the ids of those that were in before it.

        Args:
            batch: the batch that all jobs become rows of.
            chunk: jobs per call of the server; 1 or more.
            idempotency_keys: one for each job, see `submit`; they are remembered for a day.

        Raises:
            InvalidJob: a job is bad; those before it are enqueued.
            ServerError: as `submit`, of the chunks under way.
            QueueFull: the lane, or the server, has no room for the next chunk.
            ValueError: the lane's name or a key is none, there are too few keys, or `chunk` is under 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be 1 or more")
        check_lane(lane)
        chunks = cut(jobs if self._hook is nullcontext else map(self._hooked, jobs), batch, chunk)
        if idempotency_keys is not None:
            chunks = with_keys(chunks, idempotency_keys)
        return await enqueue_all(self._link, (Call(self._keys, lane, chunk) for chunk in chunks))

    def _hooked(self, job: Job | str) -> Job:
        with self._hook(as_job(job, None)) as hooked:
            return hooked

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

    async def lanes(self) -> list[Lane]:
        """The declared lanes, by name: what waits in each, and its settings."""
        return (await self._link.patiently(lambda: read_lanes(self._link, self._keys)))[1]

    async def queue_settings(self) -> LaneSettings:
        """Settings of the whole queue; the weight means nothing there."""
        return (await self._link.patiently(lambda: read_lanes(self._link, self._keys)))[0]

    async def set_lane(self, lane: str | None, **settings: float | bool | None) -> LaneSettings:
        """Set some of a lane's `LaneSettings`; None as a value takes one back.

        Args:
            lane: the lane, which need not be declared yet; None for the whole queue.

        Raises:
            ValueError: the lane's name is not one, or a setting is unknown or out of range.
        """
        name = WHOLE_QUEUE if lane is None else check_lane(lane)
        return await self._link.patiently(lambda: configure(self._link, self._keys, name, settings))

    async def pause(self, lane: str | None = None) -> None:
        """Have consumers take nothing more from a lane, or from the whole queue. What runs goes on."""
        await self.set_lane(lane, paused=True)

    async def resume(self, lane: str | None = None) -> None:
        """Undo `pause` of the same lane, or of the whole queue."""
        await self.set_lane(lane, paused=None)

    async def dead_letters(self, after: str = "0-0", count: int = 100) -> list[DeadLetter]:
        """Up to `count` dead letters behind the letter `after`, oldest first.

        Raises:
            ValueError: `after` is not a letter's id.
        """
        return await self._link.patiently(lambda: read_letters(self._link, self._keys, after, count))

    async def dead_letter(self, letter_id: str) -> DeadLetter:
        """One dead letter.

        Raises:
            NoSuchLetter: there is none of this id.
        """
        return await self._link.patiently(lambda: read_letter(self._link, self._keys, letter_id))

    async def requeue(self, letter_id: str) -> str:
        """Make a new job of a dead letter, and give the new job's id. Its `retry_of` is the old one's.

        Raises:
            NoSuchLetter: there is none of this id.
            ServerUnavailable: it may or may not have been requeued; the letter is there or it is not.
        """
        return await requeue(self._link, self._keys, letter_id)

    async def drop(self, letter_id: str) -> bool:
        """Remove a dead letter; whether there was one."""
        return await self._link.patiently(lambda: drop(self._link, self._keys, letter_id))

    async def _entries(self, job_id: str, after: str) -> AsyncGenerator[Entry, None]:
        """Entries of a job's result stream, up to the terminal one."""
        parsed = JobId.parse(job_id)
        parse_entry_id(after)
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
            status = await read_whether_there(self._link, self._keys, job_id)
            entries = subscription.ready()
            if not entries and isinstance(status, Expired | Lost | Unknown):
                raise JobLost(f"job {job_id} {_LOST[type(status)]}")
            if not entries and isinstance(status, Ended) and subscription.is_past(status.event_id):
                # The server lost its last second, and the job ended earlier the second time.
                return [(status.event_id, encode_event(status.event))]
            return entries
        return []
