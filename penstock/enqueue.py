"""Put jobs into a lane: check and encode them, cut them into chunks, keep several chunks on their way.

One connection carries the chunks one behind the other, so that a lane has jobs in the order in which they
were given; the server works on one chunk while the next is being encoded.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice

import msgspec
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ResponseError

from penstock.command import Argument
from penstock.errors import CursorMoved, InvalidJob, PenstockError
from penstock.keys import Keys, check_idempotency_key
from penstock.link import Link, receive, send
from penstock.messages import Job, encode_job
from penstock.refusals import in_our_words
from penstock.scripts import ENQUEUE

CHUNK_JOBS = 500
CHUNK_BYTES = 1024 * 1024
"""A chunk is closed at so many jobs or bytes, so that no call holds up the server for long."""

IN_FLIGHT = 4
"""Chunks that are sent before the first one's reply is awaited."""

MAX_LANE_JOBS = 1_000_000
"""Outstanding jobs of a lane beyond which an enqueue is refused, where nobody has set a limit."""

IDEMPOTENCY_TTL_S = 86400
"""How long an idempotency key is remembered, unless the caller says otherwise."""

_NONCE_BYTES = 8


class Cursor(msgspec.Struct, frozen=True):
    """Where a bulk driver expects its batch to be, and where the batch is after this call."""

    expected: str
    new: str
    epoch: str = ""
    """The driver's; empty where nobody has taken the batch."""


EnqueueHook = Callable[[Job], AbstractContextManager[Job]]
"""See `penstock.client.Client`."""


class Chunk(msgspec.Struct):
    """Jobs of one call: their JSON, and the batch of which they all are rows, if of any."""

    batch: str | None
    jobs: list[bytes]
    size: int = 0
    idempotency_keys: list[str] = []
    """One for each job, or none."""
    idempotency_ttl_s: float = IDEMPOTENCY_TTL_S


def as_job(job: Job | str, batch: str | None) -> Job:
    """Make a job of a prompt, and a row of a batch of a job.

    Raises:
        InvalidJob: the job names another batch.
    """
    if isinstance(job, str):
        return Job(prompt=job, batch=batch)
    if batch is None or job.batch == batch:
        return job
    if job.batch is not None:
        raise InvalidJob(f"the job is a row of batch {job.batch!r}; it cannot go into batch {batch!r}")
    return msgspec.structs.replace(job, batch=batch)


def cut(jobs: Iterable[Job | str], batch: str | None, chunk_jobs: int) -> Iterator[Chunk]:
    """Check, encode and group jobs, reading no further ahead than one chunk.

    Raises:
        InvalidJob: a job is bad; its place in the input is named. As with whatever `jobs` itself raises, the
            jobs before it are in chunks that have been given.
    """
    chunk: Chunk | None = None
    try:
        for row_of, data in _encoded(jobs, batch):
            if chunk is not None and not _fits(chunk, row_of, data, chunk_jobs):
                yield chunk
                chunk = None
            if chunk is None:
                chunk = Chunk(row_of, [])
            chunk.jobs.append(data)
            chunk.size += len(data)
    except Exception:
        if chunk is not None:
            yield chunk
        raise
    if chunk is not None:
        yield chunk


def with_keys(chunks: Iterator[Chunk], idempotency_keys: Iterable[str]) -> Iterator[Chunk]:
    """Give each job of the chunks the next key.

    Raises:
        ValueError: there are fewer keys than jobs, or one is not a key.
    """
    keys = iter(idempotency_keys)
    for chunk in chunks:
        chunk.idempotency_keys = [check_idempotency_key(key) for key in islice(keys, len(chunk.jobs))]
        if len(chunk.idempotency_keys) < len(chunk.jobs):
            raise ValueError("there are fewer idempotency keys than jobs; give one for each")
        yield chunk


def _encoded(jobs: Iterable[Job | str], batch: str | None) -> Iterator[tuple[str | None, bytes]]:
    for index, given in enumerate(jobs):
        try:
            job = as_job(given, batch)
            data = encode_job(job)
        except InvalidJob as error:
            raise type(error)(f"job {index} of this call: {error}") from None
        yield job.batch, data


def _fits(chunk: Chunk, batch: str | None, data: bytes, chunk_jobs: int) -> bool:
    small = len(chunk.jobs) < chunk_jobs and chunk.size + len(data) <= CHUNK_BYTES
    return small and chunk.batch == batch


class Call:
    """One run of the enqueue script for one chunk: what is sent, and ids made of the reply."""

    def __init__(self, keys: Keys, lane: str, chunk: Chunk, cursor: Cursor | None = None) -> None:
        self._lane = lane
        self._cursor = cursor
        stream = keys.jobs(lane)
        batch = stream if chunk.batch is None else keys.batch(chunk.batch)
        self.keys = [stream, keys.lanes, keys.control, batch]
        self.keys += [keys.idempotency(key) for key in chunk.idempotency_keys]
        digits = os.urandom(_NONCE_BYTES * len(chunk.jobs)).hex()
        width = 2 * _NONCE_BYTES
        self._nonces = [digits[i : i + width] for i in range(0, len(digits), width)]
        head = ("0", "", "") if cursor is None else ("1", cursor.expected, cursor.new)
        self.args: list[Argument] = [lane, *head, MAX_LANE_JOBS, int(chunk.idempotency_ttl_s * 1000)]
        self.args.append("" if cursor is None else cursor.epoch)
        for nonce, job in zip(self._nonces, chunk.jobs, strict=True):
            self.args += (nonce, job)

    def ids(self, reply: bytes) -> list[str]:
        """Job ids of a reply."""
        entries = reply.decode().split()
        # A whole id is an earlier job's, under the same idempotency key.
        return [
            entry if "." in entry else f"{self._lane}.{entry}.{nonce}"
            for entry, nonce in zip(entries, self._nonces, strict=True)
        ]

    def explain(self, error: Exception) -> PenstockError:
        """The exception of ours for what the script or the connection raised."""
        code, _, actual = str(error).partition(" ")
        if self._cursor is not None and code == "CURSORMOVED":
            return CursorMoved(self._cursor.expected, actual)
        return in_our_words(error)


async def enqueue(link: Link, call: Call) -> list[str]:
    """Run one call.

    Raises:
        ServerUnavailable: the message says whether the jobs may have been accepted.
        QueueFull: the lane or the server has no room; nothing was enqueued.
        BatchUnknown: the batch does not exist; nothing was enqueued.
        CursorMoved: the batch's cursor is elsewhere; nothing was enqueued.
        BatchTaken: another drives the batch; nothing was enqueued.
    """
    try:
        return call.ids(await link.script(ENQUEUE, call.keys, call.args))
    except PenstockError as error:
        cause = error.__cause__
        raise (call.explain(cause) if isinstance(cause, ResponseError) else error) from cause


async def enqueue_all(link: Link, calls: Iterable[Call]) -> list[str]:
    """Run calls one behind the other on one connection, several on their way at once.

    Raises:
        PenstockError: one that `calls` raised while it was read, or one of `enqueue`; its `accepted` has the
            ids of the jobs that had been enqueued by then.
    """
    async with link.connection() as connection:
        pipeline = _Pipeline(connection)
        try:
            for call in calls:
                await pipeline.push(call)
            await pipeline.drain()
        except Exception as error:
            await pipeline.abandon()
            if isinstance(error, PenstockError):
                error.accepted = pipeline.ids()
            raise
        finally:
            # Replies that nobody read (a cancelled caller) must not meet the connection's next user.
            if pipeline.waiting:
                await connection.disconnect(nowait=True)
    return pipeline.ids()


class _Pipeline:
    """Calls on their way over one connection, and the ids that their replies brought."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._ids: list[list[str]] = []  # per call in the order of the calls, empty until its reply is read
        self._known = False
        self.waiting: deque[tuple[Call, list[str]]] = deque()

    def ids(self) -> list[str]:
        """Ids of all jobs known to be enqueued, in the order of the jobs."""
        return [job_id for ids in self._ids for job_id in ids]

    async def push(self, call: Call) -> None:
        """Send a call; read the oldest reply first where enough calls are on their way."""
        if len(self.waiting) >= IN_FLIGHT:
            await self._read()
        ids: list[str] = []
        self._ids.append(ids)
        await self._send(call, ids)

    async def drain(self) -> None:
        """Read every reply that is still to come."""
        while self.waiting:
            await self._read()

    async def abandon(self) -> None:
        """After a failure: note which of the calls on their way were accepted, if that can be known."""
        while self.waiting and self._connection.is_connected:
            with contextlib.suppress(PenstockError):
                await self._read()
        self.waiting.clear()

    async def _send(self, call: Call, ids: list[str]) -> None:
        # The first call brings the script's source, so that those behind it find the script known.
        head = ("EVALSHA", ENQUEUE.sha) if self._known else ("EVAL", ENQUEUE.source)
        self._known = True
        self.waiting.append((call, ids))
        try:
            await send(self._connection, *head, len(call.keys), *call.keys, *call.args)
        except Exception as error:
            raise in_our_words(error) from error

    async def _read(self) -> None:
        call, ids = self.waiting.popleft()
        try:
            ids += call.ids(await receive(self._connection))
        except NoScriptError:  # flushed meanwhile: it was not run, and goes to the end of the line
            self._known = False
            await self._send(call, ids)
        except Exception as error:
            raise call.explain(error) from error
