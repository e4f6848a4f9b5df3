"""A batch's rows as the driver takes them, and their ends as it gives them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import IO, Final

from penstock.messages import MAX_JOB_BYTES, Failed
from producer.driven import EndedRow, Planned
from producer.gateway.batches.lines import Asked, BadLine, Checker, custom_id_of
from producer.gateway.batches.reply_lines import ReplyLines, row_of, unfinished
from producer.gateway.batches.segments import Written
from producer.gateway.openai.endpoints import Models
from producer.gateway.openai.form import Form
from producer.rows import rows_of
from producer.threads import in_thread

SEGMENT_BYTES: Final = 4 * 1024 * 1024
"""What waits in memory for the next segment, about."""
SHORTEST_SYNC_S: Final = 0.5
LONGEST_SYNC_S: Final = 10.0
SYNC_SHARE: Final = 0.01
"""A segment is written after so much of the time that the driver has run."""
TOKENS_WITHOUT_LIMIT: Final = 256

Note = tuple[str, Form]


class Rows:
    """The lines of the input. A row's note is its custom_id and how its end is told."""

    def __init__(self, open_input: Callable[[], IO[bytes]], checker: Checker, batch_id: str) -> None:
        self._open_input = open_input
        self._checker = checker
        self._batch_id = batch_id

    def read(self) -> Iterator[tuple[int, bytes]]:
        """See `Source`."""
        with self._open_input() as file:
            yield from rows_of(file)

    def plan(self, number: int, line: bytes) -> Planned[Note] | BadLine:
        """See `Source`."""
        asked = self._checker.read(number, line, self._batch_id)
        if isinstance(asked, BadLine):
            return asked
        return Planned(asked.job, (asked.custom_id, asked.form), tokens_of(asked, len(line)))


def tokens_of(asked: Asked, size: int) -> int:
    """About how many tokens a row has in the queue, prompt and output."""
    params = asked.job.sampling_params
    generated = params.n * (params.max_tokens or TOKENS_WITHOUT_LIMIT) if asked.job.kind == "generate" else 0
    return min(size, MAX_JOB_BYTES) // 4 + generated


class Ends:
    """The sink: ends of rows become lines, lines become segments."""

    def __init__(
        self,
        batch_id: str,
        written: Written,
        models: Callable[[], Awaitable[Models]],
        stored: Callable[[], Awaitable[None]],
    ) -> None:
        self.batch = batch_id
        self._lines = ReplyLines(batch_id)
        self._written = written
        self._models = models
        self._stored = stored
        self._began = time.monotonic()
        self._waiting_since: float | None = None
        """When the first line that no segment has was written."""
        self.is_closing = False
        """Jobs that end as cancelled do so because the batch ends; their rows are written with the rest."""

    def anew(self) -> str:
        """See `Sink`. Epochs tell its lives apart, so the name stays."""
        return self.batch

    async def taken(self, epoch: str) -> None:
        """See `Sink`."""
        await in_thread(self._written.begin, epoch, row_of)

    def __contains__(self, number: int) -> bool:
        return number in self._written.rows

    async def write(self, ended: list[EndedRow[Note]], refused: list[tuple[int, BadLine]]) -> None:
        """See `Sink`."""
        models = await self._models()
        self._waiting_since = self._waiting_since or time.monotonic()
        await in_thread(self._write, ended, refused, models)

    def _write(self, ended: list[EndedRow[Note]], refused: list[tuple[int, BadLine]], models: Models) -> None:
        for row in ended:
            event = row.event
            if self.is_closing and isinstance(event, Failed) and event.error.type == "cancelled":
                continue
            line, totals = self._lines.answer(row.number, row.job_id, row.note, event, models)
            self._written.add(row.number, line, totals)
        for number, bad in refused:
            self._written.add(number, *self._lines.unsent(number, bad))

    def is_due(self) -> bool:
        """See `Sink`. A long batch writes fewer segments an hour than a short one."""
        if self._waiting_since is None:
            return False
        now = time.monotonic()
        wanted = min(max(SYNC_SHARE * (now - self._began), SHORTEST_SYNC_S), LONGEST_SYNC_S)
        return self._written.waiting_bytes > SEGMENT_BYTES or now - self._waiting_since > wanted

    async def sync(self) -> None:
        """See `Sink`."""
        has_more = await in_thread(self._written.store)
        self._waiting_since = None
        if has_more:
            await self._stored()

    async def write_rest(self, rows: Rows, *, expired: bool) -> None:
        """Every row that has not ended, as one that never will."""
        reading = rows.read()
        while await in_thread(self._write_some, reading, expired):
            if self._written.waiting_bytes > SEGMENT_BYTES:
                await self.sync()
        await self.sync()

    def _write_some(self, reading: Iterator[tuple[int, bytes]], expired: bool) -> bool:
        for at, (number, line) in enumerate(reading, 1):
            if number not in self._written.rows:
                bad = unfinished(number, custom_id_of(line), expired=expired)
                self._written.add(number, *self._lines.unsent(number, bad))
            if at == 500:
                return True
        return False
