"""Batches: jobs whose ends are collected, row by row, in one stream.

The batch's hash counts; its done stream has one entry per finished row with the whole terminal event. Whoever
drives it trims what is safely stored elsewhere, and deletes it; a batch that nobody deletes expires 30 days
after its last row was enqueued or ended. Where several may believe that they drive it, each takes it first,
and the server refuses all but the last.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from typing import Any

from msgspec import Struct

from penstock.backoff import pauses
from penstock.enqueue import CHUNK_JOBS, Call, Chunk, Cursor, as_job, cut, enqueue, enqueue_all
from penstock.errors import BatchExists, BatchUnknown, ServerUnavailable
from penstock.follower import parse_entry_id
from penstock.keys import (
    COMPLETED,
    CURSOR,
    DEFAULT_LANE,
    EVENT,
    EXPECTED,
    FAILED,
    JOB_ID,
    ROW,
    TOTAL,
    Keys,
    check_lane,
)
from penstock.link import BLOCK_MS, Link
from penstock.messages import BATCH_ID_PATTERN, Done, Failed, Job, decode_terminal, encode_job
from penstock.scripts import DRIVE, FINISH, TRIM, Script

ROWS_PER_READ = 500


class BatchCounts(Struct, frozen=True, kw_only=True):
    """How far a batch is. What is neither completed nor failed is outstanding."""

    total: int
    completed: int
    failed: int
    expected: int | None = None
    """Rows that there will be, where the batch's driver has said so."""

    @property
    def outstanding(self) -> int:
        """Rows that have not ended."""
        return self.total - self.completed - self.failed


class FinishedRow(Struct, frozen=True, kw_only=True):
    """The end of one row."""

    entry_id: str
    """Its place in the done stream: what `done` and `trim` take."""
    job_id: str
    row: int | None
    """The job's `row`, where it had one."""
    event: Done | Failed


async def create(link: Link, keys: Keys, batch_id: str | None) -> Batch:
    """Open a batch; see `Client.create_batch`."""
    batch = Batch(link, keys, batch_id or os.urandom(12).hex())
    if not await link.command("HSETNX", keys.batch(batch.id), TOTAL, 0):
        raise BatchExists(f"there is a batch {batch.id!r} already; `Client.batch` gives a handle on it")
    return batch


class Batch:
    """A handle on one batch; as good as its client, and no longer."""

    def __init__(self, link: Link, keys: Keys, batch_id: str, epoch: str = "") -> None:
        if re.fullmatch(BATCH_ID_PATTERN, batch_id) is None:
            raise ValueError(f"{batch_id!r} is not a batch name; use 1 to 64 letters, digits, _ and -")
        self.id = batch_id
        self.epoch = epoch
        """What this handle drives the batch by, from `take`; empty for a handle that does not."""
        self._link = link
        self._all_keys = keys
        self._key = keys.batch(batch_id)
        self._done_key = keys.batch_done(batch_id)

    async def submit_many(
        self, jobs: Iterable[Job | str], lane: str = DEFAULT_LANE, chunk: int = CHUNK_JOBS
    ) -> list[str]:
        """Enqueue rows without a cursor; otherwise as `Client.submit_many`.

        Raises:
            BatchUnknown: the batch was deleted.
        """
        check_lane(lane)
        calls = (Call(self._all_keys, lane, part) for part in cut(jobs, self.id, chunk))
        return await enqueue_all(self._link, calls)

    async def enqueue_rows(
        self, jobs: Iterable[Job | str], *, cursor: str, new_cursor: str, lane: str = DEFAULT_LANE
    ) -> list[str]:
        """Enqueue the next rows and move the batch's cursor, both or neither.

        A driver that is killed at any moment reads `cursor` afterwards and goes on from there: no row is
        skipped and none repeated. One call is one chunk; some hundreds of rows are a good one.

        Args:
            cursor: where the driver believes the batch to be; empty for a batch without a cursor.
            new_cursor: where it is after these rows; any text that means something to the driver.

        Raises:
            CursorMoved: it is elsewhere; nothing was enqueued.
            BatchTaken: another drives the batch; nothing was enqueued.
            BatchUnknown: the batch was deleted; nothing was enqueued.
            InvalidJob: nothing was enqueued.
            ServerUnavailable: ask for the cursor to learn whether the rows are in.
        """
        rows = [encode_job(as_job(job, self.id)) for job in jobs]
        chunk = Chunk(self.id, rows)
        call = Call(self._all_keys, check_lane(lane), chunk, Cursor(cursor, new_cursor, self.epoch))
        return await enqueue(self._link, call)

    async def take(
        self, lease_s: float = 0.0, *, restart: bool = False, expected: int | None = None
    ) -> Batch:
        """Take the batch, and give a handle that drives it: what it changes is refused once another takes it.

        Args:
            lease_s: for so long nobody else can take it; 0 for a driver that makes sure otherwise that it is
                the only one, and need not wait for its own earlier lease to end.
            restart: make the batch where it is not, and empty it where it is: no rows, no cursor. Rows that
                are outstanding run on, and end in its done stream.
            expected: how many rows it will have, for whoever looks on.

        Raises:
            BatchTaken: another drives it.
            BatchUnknown: there is none to take.
        """
        return await self._drive(lease_s, "restart" if restart else "take", expected)

    async def renew(self, lease_s: float) -> None:
        """Keep what `take` gave for so long from now.

        Raises:
            BatchTaken: another has taken the batch, or the server has forgotten that this one had.
            BatchUnknown: the batch was deleted, or the server lost it.
        """
        await self._drive(lease_s, "renew")

    async def _drive(self, lease_s: float, how: str, expected: int | None = None) -> Batch:
        args = [self.epoch, int(lease_s * 1000), how, "" if expected is None else expected]
        epoch = await self._link.patiently(lambda: self._link.script(DRIVE, [self._key], args))
        return Batch(self._link, self._all_keys, self.id, epoch.decode())

    async def cursor(self) -> str:
        """Where the batch's driver is; empty before its first rows."""
        value = await self._read("HGET", self._key, CURSOR)
        return value.decode() if value else ""

    async def counts(self) -> BatchCounts:
        """How many rows there are, and how they ended; all zero where there is no such batch."""
        fields = (TOTAL, COMPLETED, FAILED, EXPECTED)
        *values, expected = await self._read("HMGET", self._key, *fields)
        total, completed, failed = (int(value or 0) for value in values)
        return BatchCounts(
            total=total,
            completed=completed,
            failed=failed,
            expected=None if expected is None else int(expected),
        )

    async def done(
        self, after: str = "0-0", block_s: float | None = None
    ) -> AsyncGenerator[FinishedRow, None]:
        """Give finished rows in the order in which they ended, from behind the entry `after`.

        Args:
            block_s: end when no row has come for so many seconds, 0 for what is there now; None waits on.

        Raises:
            ServerUnavailable: the server could not be reached for `block_s` seconds; None keeps trying.
            ValueError: `after` is not an entry id.
        """
        while rows := await self.finished(after, block_s):
            for row in rows:
                after = row.entry_id
                yield row

    async def finished(self, after: str = "0-0", block_s: float | None = None) -> list[FinishedRow]:
        """Some hundreds of finished rows at most, as `done` gives them one by one; none where none has come.

        Raises:
            ServerUnavailable, ValueError: as `done`.
        """
        parse_entry_id(after)
        loop = asyncio.get_running_loop()
        waits, began = pauses(), loop.time()
        while True:
            left = BLOCK_MS / 1000 if block_s is None else began + block_s - loop.time()
            try:
                entries = await self._next(after, min(max(int(left * 1000), 0), BLOCK_MS))
            except ServerUnavailable:
                if left <= 0:
                    raise
                await asyncio.sleep(next(waits))
                continue
            if entries or left <= 0:
                return [_row(raw_id.decode(), fields) for raw_id, fields in entries]

    async def trim(self, upto: str) -> int:
        """Remove finished rows up to and with the entry `upto`, once they are safely stored elsewhere.

        Returns:
            How many were removed.

        Raises:
            ValueError: `upto` is not an entry id.
            BatchTaken: another drives the batch.
        """
        count, sequence = parse_entry_id(upto)
        keep = f"{count}-{sequence + 1}"
        if self.epoch:
            return int(await self._as_driver(TRIM, keep))
        return int(await self._read("XTRIM", self._done_key, "MINID", keep))

    async def delete(self) -> None:
        """Delete the batch: its counts and its finished rows. Rows still outstanding run on, and end in
        result streams of their own.

        Raises:
            BatchTaken: another drives the batch.
        """
        if not self.epoch:
            await self._read("DEL", self._key, self._done_key)
            return
        with suppress(BatchUnknown):
            await self._as_driver(FINISH)

    async def _as_driver(self, script: Script, *args: str) -> Any:
        keys = [self._key, self._done_key]
        return await self._link.patiently(lambda: self._link.script(script, keys, [self.epoch, *args]))

    async def _read(self, *args: str | int) -> Any:
        """Run a command that may be repeated."""
        return await self._link.patiently(lambda: self._link.command(*args))

    async def _next(self, after: str, block_ms: int) -> list[Any]:
        blocking = ("BLOCK", block_ms) if block_ms else ()
        reply = await self._link.blocking(
            "XREAD", "COUNT", ROWS_PER_READ, *blocking, "STREAMS", self._done_key, after
        )
        return reply[0][1] if reply else []


def _row(entry_id: str, fields: list[bytes]) -> FinishedRow:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    row = values.get(ROW.encode(), b"")
    return FinishedRow(
        entry_id=entry_id,
        job_id=values[JOB_ID.encode()].decode(),
        row=int(row) if row else None,
        event=decode_terminal(values[EVENT.encode()]),
    )
