"""A dataset run: rows of a file through one batch on the server, their ends into one output file.

Three things are durable, and every crash leaves them in an order that loses and repeats nothing:

1. the batch's cursor, which the server moves together with the rows it takes: rows before it were sent;
2. the batch's done stream, which holds the end of each row until it is trimmed;
3. the output, which is on disk before the done stream is trimmed.

So the rows in flight are those before the cursor that the output lacks. A run that starts anew, one that
meets a server which lost its last second, and one whose connection broke in mid-enqueue do the same thing:
read the cursor, work out what is in flight, read the done stream from its beginning, go on.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from penstock.backoff import pauses
from penstock.batch import Batch, FinishedRow
from penstock.client import Client
from penstock.errors import BatchUnknown, CursorMoved, QueueFull, ServerFull, ServerUnavailable
from penstock.keys import Keys
from penstock.lanes import paused_words
from penstock.link import Link
from penstock.messages import Job
from penstock.presence import alive_consumers, in_words
from producer.answers import Output, RunState, answer_of, answer_of_bad, save_state
from producer.progress import Progress
from producer.rows import BadRow, parse_row, read_rows

CHUNK_ROWS: Final = 256
"""Most rows of one enqueue, which also caps what a killed run has to find out again."""
CHUNK_BYTES: Final = 1024 * 1024
SYNC_S: Final = 0.5
"""Longest time that an answer waits in memory while others come."""
IDLE_S: Final = 1.0
"""Silence after which the run looks whether there is still something to wait for."""


class Plan(Struct, frozen=True):
    """What the caller asked for."""

    input: Path
    output: Path
    window: int
    lane: str


class _Chunk(Struct):
    """Rows of one enqueue: their jobs, what each expects, and where the cursor is behind them."""

    end: int
    jobs: list[Job] = []
    expected: dict[int, str | None] = {}
    size: int = 0

    def halves(self) -> tuple[_Chunk, _Chunk]:
        """Two chunks of its jobs, which are two at least; the second one begins with a row that has a job."""
        middle = len(self.jobs) // 2
        first, second = self.jobs[:middle], self.jobs[middle:]
        row = second[0].row
        assert row is not None
        before = {number: text for number, text in self.expected.items() if number < row}
        behind = {number: text for number, text in self.expected.items() if number >= row}
        return _Chunk(row, first, before, self.size // 2), _Chunk(self.end, second, behind, self.size // 2)


class _Rejoin(Exception):
    """The batch is not as this process believes: look again at what the server has."""


class _RowsLost(Exception):
    """Rows in flight will never end: the server lost them."""


class Run:
    """Drives one plan to its end. `state` and `output` are what an earlier process left, or new."""

    def __init__(
        self, plan: Plan, server: str, output: Output, state: RunState, total: int, progress: Progress
    ) -> None:
        self._plan = plan
        self._server = server
        self._output = output
        self._state = state
        self._total = total
        self._progress = progress
        self._keys = Keys()
        self._in_flight: dict[int, str | None] = {}
        """Rows sent and not written, and what each expects."""
        self._rows: Iterator[tuple[int, bytes]] = iter(())
        self._held: list[_Chunk] = []
        """Chunks that were refused, or that are the rest of one, the next one last."""
        self._refused_until = self._looked = 0.0
        self._cursor = ""
        self._exhausted = False
        self._read = self._trimmed = "0-0"
        self._synced = time.monotonic()
        self._suspicion = ""
        self._said = ""

    async def finish(self) -> None:
        """Run until every row is in the output. An outage of the server is waited for, however long.

        Raises:
            ServerError: the server refuses the work.
        """
        waits, fresh = pauses(), not self._state.batch
        async with Client(self._server) as client:
            while True:
                try:
                    batch = await self._join(client, fresh=fresh)
                    fresh, waits = False, pauses()
                    await self._drive(batch)
                    return await self._close(batch)
                except (BatchUnknown, _RowsLost):
                    self._progress.say("the server lost rows of this run; they are asked again")
                    fresh = True
                except (CursorMoved, _Rejoin):
                    self._progress.say("the server's record of this run has moved; looking again")
                except QueueFull as error:
                    self._say_once(f"waiting for room: {error}")
                    await asyncio.sleep(_spread(error.retry_after_s))
                except ServerUnavailable as error:
                    self._say_once(f"waiting for the server: {error}")
                    await asyncio.sleep(next(waits))

    async def _join(self, client: Client, *, fresh: bool) -> Batch:
        """Find the batch where it is, or open a new one for the rows that the output lacks."""
        cursor = "" if fresh else await client.batch(self._state.batch).cursor()
        if cursor:
            batch = client.batch(self._state.batch)
        else:
            if not fresh:
                self._progress.say(
                    "the server has forgotten this run; rows without an answer are asked again"
                )
            batch, cursor = await self._open(client), "0"
        self._cursor, self._held, self._exhausted = cursor, [], False
        self._read = self._trimmed = "0-0"
        self._in_flight.clear()
        self._rows = read_rows(self._plan.input)
        self._pass_over(int(cursor))
        return batch

    async def _open(self, client: Client) -> Batch:
        # Known on disk before it is on the server: rows are never sent for a batch that no one remembers.
        self._state = msgspec.structs.replace(self._state, batch=f"run-{secrets.token_hex(10)}")
        save_state(self._plan.output, self._state)
        batch = await client.create_batch(self._state.batch)
        # An empty cursor is then the sign of a batch that the server knows no more.
        await batch.enqueue_rows([], cursor="", new_cursor="0", lane=self._plan.lane)
        return batch

    def _pass_over(self, cursor: int) -> None:
        """Read the rows that were sent before, for those that have not ended."""
        at = 0
        while at < cursor:
            if (chunk := self._next_chunk(CHUNK_ROWS, cursor)) is None:
                break
            self._in_flight |= chunk.expected
            at = chunk.end

    async def _drive(self, batch: Batch) -> None:
        await self._fill(batch)
        while not (self._exhausted and not self._in_flight):
            heard = False
            async with aclosing(batch.done(self._read, block_s=self._patience_s())) as finished:
                async for row in finished:
                    heard = True
                    self._write(row)
                    if 2 * len(self._in_flight) <= self._plan.window and not self._exhausted:
                        await self._fill(batch)
                    if time.monotonic() - self._synced > SYNC_S:
                        await self._sync(batch)
                    if self._exhausted and not self._in_flight:
                        break
            await self._sync(batch)
            if not heard and time.monotonic() - self._looked >= IDLE_S:
                await self._look_around(batch)
                self._looked = time.monotonic()
            await self._fill(batch)

    async def _fill(self, batch: Batch) -> None:
        """Send rows until the window is full, or there is no room for them."""
        if time.monotonic() < self._refused_until:
            return
        while (room := self._plan.window - len(self._in_flight)) > 0:
            chunk = self._held.pop() if self._held else self._next_chunk(min(room, CHUNK_ROWS))
            if chunk is None:
                self._exhausted = True
                break
            self._held.append(chunk)
            jobs = [msgspec.structs.replace(job, batch=batch.id) for job in chunk.jobs]
            try:
                await batch.enqueue_rows(
                    jobs, cursor=self._cursor, new_cursor=str(chunk.end), lane=self._plan.lane
                )
            except QueueFull as error:
                if len(chunk.jobs) > 1 and not isinstance(error, ServerFull):
                    self._held[-1:] = reversed(chunk.halves())  # a lane may have room for fewer
                    continue
                self._say_once(f"sending on as there is room: {error}")
                self._refused_until = time.monotonic() + _spread(error.retry_after_s)
                break
            self._held.pop()
            self._cursor = str(chunk.end)
            self._in_flight |= chunk.expected
        self._progress.update(self._output.tally, self._total)

    def _patience_s(self) -> float:
        """How long to wait for answers before looking around, or before sending what was refused."""
        refused_s = self._refused_until - time.monotonic()
        return IDLE_S if refused_s <= 0 else min(IDLE_S, max(refused_s, 0.05))

    def _next_chunk(self, max_rows: int, before: int | None = None) -> _Chunk | None:
        """The next rows that the output lacks, bad ones written at once; None at the end of the file."""
        chunk: _Chunk | None = None
        for number, line in self._rows:
            chunk = chunk or _Chunk(0)
            chunk.end = number + 1
            if number not in self._output.rows:
                row = parse_row(number, line)
                if isinstance(row, BadRow):
                    self._output.write(answer_of_bad(row))
                else:
                    chunk.jobs.append(msgspec.structs.replace(row.job, row=number, stream=False))
                    chunk.expected[number] = row.expected
                    chunk.size += len(line)
            if len(chunk.jobs) >= max_rows or chunk.size >= CHUNK_BYTES or chunk.end == before:
                break
        return chunk

    def _write(self, row: FinishedRow) -> None:
        self._read = row.entry_id
        self._suspicion = ""
        # Not in flight: written before, and its entry not trimmed; or run again after a loss of data.
        if row.row is not None and row.row in self._in_flight:
            self._output.write(answer_of(row.row, row.event, self._in_flight.pop(row.row)))
            self._progress.update(self._output.tally, self._total)

    async def _sync(self, batch: Batch) -> None:
        """Bring the output to disk; only then may the server forget."""
        self._output.sync()
        self._synced = time.monotonic()
        if self._read != self._trimmed:
            await batch.trim(self._read)
            self._trimmed = self._read

    async def _look_around(self, batch: Batch) -> None:
        """Nothing comes: say why, and make sure that something can."""
        if await batch.cursor() != self._cursor:
            raise _Rejoin
        link = Link(self._server)
        try:
            paused = await paused_words(link, self._keys, self._plan.lane)
            self._progress.wait(paused or in_words(await alive_consumers(link, self._keys)))
            waiting = int(await link.command("XLEN", self._keys.jobs(self._plan.lane)))
        finally:
            await link.aclose()
        counts = await batch.counts()
        gone = self._in_flight and (counts.outstanding == 0 or waiting == 0)
        suspicion = f"{counts} {waiting} {self._read}" if gone else ""
        # Twice in a row: a row may have ended between one of these questions and the next.
        if suspicion and suspicion == self._suspicion:
            raise _RowsLost
        self._suspicion = suspicion

    async def _close(self, batch: Batch) -> None:
        self._output.sync()
        save_state(self._plan.output, msgspec.structs.replace(self._state, finished=True))
        await batch.delete()

    def _say_once(self, words: str) -> None:
        if words != self._said:
            self._said = words
            self._progress.say(words)


def _spread(seconds: float) -> float:
    """About so long, so that many that were refused in the same moment don't all come back in one."""
    return seconds * random.uniform(1.0, 1.25)
