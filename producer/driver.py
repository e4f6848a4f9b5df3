"""The driver of a batch: rows from a source through the queue, their ends into a sink.

Three things are durable, and every crash leaves them in an order that loses and repeats nothing:

1. the batch's cursor, which the server moves together with the rows it takes: rows before it were sent;
2. the batch's done stream, which holds the end of each row until it is trimmed;
3. the sink, which has stored an end before the done stream is trimmed.

So the rows in flight are those before the cursor that the sink lacks. A driver that starts anew, one that
meets a server which lost its last second, and one whose connection broke in mid-enqueue do the same thing:
take the batch, read the cursor, work out what is in flight, read the done stream from its beginning, go on.
Whoever has been replaced by another driver is refused by the server, by its epoch.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Final, Generic

import msgspec
from msgspec import Struct

from penstock.backoff import pauses
from penstock.batch import Batch, FinishedRow
from penstock.errors import (
    BatchTaken,
    BatchUnknown,
    CursorMoved,
    QueueFull,
    ServerFull,
    ServerUnavailable,
)
from penstock.lanes import paused_words
from penstock.messages import Job
from penstock.presence import alive_consumers, in_words
from producer.driven import EndedRow, Narrator, Note, Pace, Planned, Queue, Refusal, Sink, Source
from producer.threads import in_thread

CHUNK_ROWS: Final = 256
"""Most rows of one enqueue, which also caps what a killed driver has to find out again."""
CHUNK_BYTES: Final = 1024 * 1024
IDLE_S: Final = 1.0
"""Silence after which the driver looks whether there is still something to wait for."""


class _Chunk(Struct, Generic[Note, Refusal]):
    """Rows of one enqueue, and where the cursor is behind them."""

    end: int
    planned: list[tuple[int, Planned[Note]]] = []
    refused: list[tuple[int, Refusal]] = []
    size: int = 0

    def halves(self) -> tuple[_Chunk[Note, Refusal], _Chunk[Note, Refusal]]:
        """Two chunks of its rows, which are two at least; the second one begins with a row that is sent."""
        middle = len(self.planned) // 2
        first, second = self.planned[:middle], self.planned[middle:]
        return (
            # Right behind a row, where whoever goes on from the cursor stops reading what was sent.
            _Chunk(first[-1][0] + 1, first, [], self.size // 2),
            _Chunk(self.end, second, [], self.size // 2),
        )


class _Rejoin(Exception):
    """The batch is not as this process believes: look again at what the server has."""


class _RowsLost(Exception):
    """Rows in flight will never end: the server lost them."""


class Driver(Generic[Note, Refusal]):
    """Drives one batch, from wherever it is."""

    def __init__(
        self,
        queue: Queue,
        source: Source[Note, Refusal],
        sink: Sink[Note, Refusal],
        pace: Pace,
        narrator: Narrator,
    ) -> None:
        self._queue = queue
        self._source = source
        self._sink = sink
        self._pace = pace
        self._narrator = narrator
        self.batch: Batch | None = None
        """The handle by which the batch is driven, once it has been taken."""
        self._in_flight: dict[int, Planned[Note]] = {}
        """Rows sent and not written."""
        self._job_ids: dict[int, str] = {}
        """Of those, which this process sent itself."""
        self._weight = 0
        self._rows: Iterator[tuple[int, bytes]] = iter(())
        self._held: list[_Chunk[Note, Refusal]] = []
        """Chunks that were refused, or that are the rest of one, the next one last."""
        self._refused_until = self._looked = 0.0
        self._cursor = ""
        self._exhausted = False
        self._read = self._trimmed = "0-0"
        self._suspicion = ""
        self._said = ""

    async def finish(self) -> Batch:
        """Run until every row's end is stored. An outage of the server is waited for, however long.

        Returns:
            The batch, which is still there, empty.

        Raises:
            BatchTaken: another drives it.
            ServerError: the server refuses the work.
        """
        waits, anew = pauses(), not self._sink.batch
        while True:
            joined = False
            try:
                batch = await self._join(anew=anew)
                joined, anew, waits = True, False, pauses()
                await self._drive(batch)
                return batch
            except (BatchUnknown, _RowsLost):
                self._narrator.say("the server lost rows of this run; they are asked again")
                anew = True
            except (CursorMoved, _Rejoin):
                self._narrator.say("the server's record of this run has moved; looking again")
            except BatchTaken:
                if not joined:
                    raise
                self._narrator.say("another may have taken this run over; looking again")
            except QueueFull as error:
                self._say_once(f"waiting for room: {error}")
                await asyncio.sleep(_spread(error.retry_after_s))
            except ServerUnavailable as error:
                self._say_once(f"waiting for the server: {error}")
                await asyncio.sleep(next(waits))

    async def hold(self) -> Batch:
        """Take the batch for what comes before its first row; make it where it is not.

        Raises:
            BatchTaken: another drives it.
        """
        try:
            return await self._take(self._sink.batch, restart=False)
        except BatchUnknown:
            return await self._take(self._sink.anew(), restart=True)

    async def outstanding(self) -> tuple[Batch, list[str] | None]:
        """Take the batch as it is, and the ids of the jobs that have not ended; None where another process
        sent some of them, and their ids are in the lane alone."""
        batch = await self._join(anew=False)
        ids = [self._job_ids.get(number) for number in self._in_flight]
        return batch, None if None in ids else [job_id for job_id in ids if job_id is not None]

    async def drain(self, batch: Batch) -> None:
        """After `outstanding`: store what has ended, and wait for nothing."""
        while rows := await batch.finished(self._read, block_s=0):
            await self._write(rows)
        await self._sync(batch)

    async def _join(self, *, anew: bool) -> Batch:
        """Take the batch where it is, or begin it anew for the rows that the sink lacks."""
        batch, cursor = (None, "") if anew else await self._find()
        if batch is None or not cursor:
            if not anew and batch is None:
                self._narrator.say("the server has forgotten this run; rows without an end are asked again")
            batch, cursor = await self._take(self._sink.anew(), restart=True), "0"
            # An empty cursor is then the sign of a batch that the server knows no more.
            await batch.enqueue_rows([], cursor="", new_cursor=cursor, lane=self._queue.lane)
        await self._sink.taken(batch.epoch)
        self._cursor, self._held, self._exhausted = cursor, [], False
        self._read = self._trimmed = "0-0"
        self._in_flight.clear()
        self._weight = 0
        self._rows = self._source.read()
        await self._pass_over(int(cursor))
        return batch

    async def _find(self) -> tuple[Batch | None, str]:
        """The batch and its cursor, where the server knows it."""
        try:
            batch = await self._take(self._sink.batch, restart=False)
            return batch, await batch.cursor()
        except BatchUnknown:
            return None, ""

    async def _take(self, name: str, *, restart: bool) -> Batch:
        handle = self.batch
        if handle is None or handle.id != name:
            handle = self._queue.client.batch(name)
        self.batch = await handle.take(
            self._pace.lease_s, restart=restart, expected=self._pace.expected if restart else None
        )
        return self.batch

    async def _pass_over(self, cursor: int) -> None:
        """Read the rows that were sent before, for those that have not ended."""
        at = 0
        while at < cursor:
            if (chunk := await self._next_chunk(CHUNK_ROWS, cursor)) is None:
                break
            self._fly(chunk)
            at = chunk.end

    async def _drive(self, batch: Batch) -> None:
        await self._fill(batch)
        while not self._is_over():
            rows = await batch.finished(self._read, block_s=self._patience_s())
            await self._write(rows)
            if rows and not self._exhausted and 2 * len(self._in_flight) <= self._pace.window:
                await self._fill(batch)
            if self._sink.is_due():
                await self._sync(batch)
            if rows:
                continue
            if time.monotonic() - self._looked >= IDLE_S:
                await self._look_around(batch)
                self._looked = time.monotonic()
            await self._fill(batch)
        await self._sync(batch)

    def _is_over(self) -> bool:
        return self._exhausted and not self._in_flight

    async def _fill(self, batch: Batch) -> None:
        """Send rows until the window is full, or there is no room for them."""
        if time.monotonic() < self._refused_until:
            return
        while (room := self._room()) > 0:
            chunk = self._held.pop() if self._held else await self._next_chunk(min(room, CHUNK_ROWS))
            if chunk is None:
                self._exhausted = True
                break
            self._held.append(chunk)
            jobs = [
                msgspec.structs.replace(row.job, batch=batch.id, row=number, stream=False)
                for number, row in chunk.planned
            ]
            try:
                ids = await batch.enqueue_rows(
                    jobs, cursor=self._cursor, new_cursor=str(chunk.end), lane=self._queue.lane
                )
            except QueueFull as error:
                if len(chunk.planned) > 1 and not isinstance(error, ServerFull):
                    self._held[-1:] = reversed(chunk.halves())  # a lane may have room for fewer
                    continue
                self._say_once(f"sending on as there is room: {error}")
                self._refused_until = time.monotonic() + _spread(error.retry_after_s)
                break
            self._held.pop()
            self._cursor = str(chunk.end)
            self._fly(chunk)
            self._job_ids.update(zip((number for number, _ in chunk.planned), ids, strict=True))
        self._narrator.moved()

    def _room(self) -> int:
        if self._in_flight and self._weight >= self._pace.max_weight():
            return 0
        return self._pace.window - len(self._in_flight)

    def _fly(self, chunk: _Chunk[Note, Refusal]) -> None:
        for number, row in chunk.planned:
            # Its job has been sent, and may be long.
            self._in_flight[number] = Planned(_SENT, row.note, row.weight)
            self._weight += row.weight

    def _patience_s(self) -> float:
        """How long to wait for ends before looking around, or before sending what was refused."""
        refused_s = self._refused_until - time.monotonic()
        return IDLE_S if refused_s <= 0 else min(IDLE_S, max(refused_s, 0.05))

    async def _next_chunk(self, max_rows: int, before: int | None = None) -> _Chunk[Note, Refusal] | None:
        """The next rows that the sink lacks, refused ones written at once; None behind the last."""
        chunk = await in_thread(self._read_chunk, max_rows, before)
        if chunk is not None and chunk.refused:
            await self._sink.write([], chunk.refused)
            chunk.refused = []
        return chunk

    def _read_chunk(self, max_rows: int, before: int | None) -> _Chunk[Note, Refusal] | None:
        chunk: _Chunk[Note, Refusal] | None = None
        weight, max_weight = self._weight, self._pace.max_weight()
        for number, line in self._rows:
            chunk = chunk or _Chunk(0)
            chunk.end = number + 1
            if number not in self._sink:
                row = self._source.plan(number, line)
                if isinstance(row, Planned):
                    chunk.planned.append((number, row))
                    chunk.size += len(line)
                    weight += row.weight
                else:
                    chunk.refused.append((number, row))
            full = len(chunk.planned) + len(chunk.refused) >= max_rows or chunk.size >= CHUNK_BYTES
            if full or chunk.end == before or (before is None and weight >= max_weight):
                break
        return chunk

    async def _write(self, rows: list[FinishedRow]) -> None:
        ended: list[EndedRow[Note]] = []
        for row in rows:
            self._read = row.entry_id
            # Not in flight: written before, and its entry not trimmed; or run again after a loss of data.
            if row.row is not None and (sent := self._in_flight.pop(row.row, None)) is not None:
                self._weight -= sent.weight
                self._job_ids.pop(row.row, None)
                ended.append(EndedRow(row.row, row.job_id, row.event, sent.note))
        if rows:
            self._suspicion = ""
        if ended:
            await self._sink.write(ended, [])
            self._narrator.moved()

    async def _sync(self, batch: Batch) -> None:
        """Have the sink store what it has; only then may the server forget."""
        await self._sink.sync()
        if self._read != self._trimmed:
            await batch.trim(self._read)
            self._trimmed = self._read

    async def _look_around(self, batch: Batch) -> None:
        """Nothing comes: say why, and make sure that something can."""
        if await batch.cursor() != self._cursor:
            raise _Rejoin
        link, keys, lane = self._queue.link, self._queue.keys, self._queue.lane
        paused = await paused_words(link, keys, lane)
        self._narrator.wait(paused or in_words(await alive_consumers(link, keys)))
        waiting = int(await link.command("XLEN", keys.jobs(lane)))
        counts = await batch.counts()
        gone = self._in_flight and (counts.outstanding <= 0 or waiting == 0)
        suspicion = f"{counts} {waiting} {self._read}" if gone else ""
        # Twice in a row: a row may have ended between one of these questions and the next.
        if suspicion and suspicion == self._suspicion:
            raise _RowsLost
        self._suspicion = suspicion

    def _say_once(self, words: str) -> None:
        if words != self._said:
            self._said = words
            self._narrator.say(words)


_SENT: Final = Job(prompt="sent")


def _spread(seconds: float) -> float:
    """About so long, so that many that were refused in the same moment don't all come back in one."""
    return seconds * random.uniform(1.0, 1.25)
