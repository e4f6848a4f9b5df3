"""A dataset run: rows of a file through one batch on the server, their ends into one output file."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from penstock.backoff import pauses
from penstock.batch import Batch
from penstock.client import Client
from penstock.errors import BatchTaken, ServerUnavailable
from penstock.keys import Keys
from penstock.link import Link
from producer.answers import Output, RunState, answer_of, answer_of_bad, save_state
from producer.driven import EndedRow, Pace, Planned, Queue
from producer.driver import Driver
from producer.progress import Progress
from producer.rows import BadRow, parse_row, read_rows

SYNC_S: Final = 0.5
"""Longest time that an answer waits in memory while others come."""


class Plan(Struct, frozen=True):
    """What the caller asked for."""

    input: Path
    output: Path
    window: int
    lane: str


class Run:
    """Drives one plan to its end. `state` and `output` are what an earlier process left, or new."""

    def __init__(
        self, plan: Plan, server: str, output: Output, state: RunState, total: int, progress: Progress
    ) -> None:
        self._plan = plan
        self._server = server
        self._total = total
        self._answers = _Answers(plan.output, output, state)
        self._narrator = _Shown(progress, output, total)

    async def finish(self) -> None:
        """Run until every row is in the output. An outage of the server is waited for, however long.

        Raises:
            ServerError: the server refuses the work.
        """
        link = Link(self._server)
        try:
            async with Client(self._server) as client:
                queue = Queue(client, link, Keys(), self._plan.lane)
                # The output's lock sees to it that nobody else drives this batch.
                pace = Pace(self._plan.window, expected=self._answers.num_missing(self._total))
                driver = Driver(queue, _Lines(self._plan.input), self._answers, pace, self._narrator)
                batch = await driver.finish()
                self._answers.close()
                await self._delete(batch)
        finally:
            await link.aclose()

    async def _delete(self, batch: Batch) -> None:
        waits = pauses()
        while True:
            try:
                await batch.delete()
                return
            except BatchTaken:
                return  # by nobody: the server forgot what it was told last, and the batch will expire
            except ServerUnavailable as error:
                self._narrator.say(f"waiting for the server: {error}")
                await asyncio.sleep(next(waits))


class _Lines:
    """The input's lines. A row's note is what it expects."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Iterator[tuple[int, bytes]]:
        return read_rows(self._path)

    def plan(self, number: int, line: bytes) -> Planned[str | None] | BadRow:
        row = parse_row(number, line)
        return row if isinstance(row, BadRow) else Planned(row.job, row.expected)


class _Answers:
    """The output, and beside it which batch on the server is its own."""

    def __init__(self, path: Path, output: Output, state: RunState) -> None:
        self._path = path
        self._output = output
        self._state = state
        self.batch = state.batch
        self._waiting_since: float | None = None
        """When the first answer that is not on disk was written."""

    def anew(self) -> str:
        # Known on disk before it is on the server: rows are never sent for a batch that no one remembers.
        self.batch = f"run-{secrets.token_hex(10)}"
        self._save(batch=self.batch)
        return self.batch

    async def taken(self, epoch: str) -> None:
        pass

    def __contains__(self, number: int) -> bool:
        return number in self._output.rows

    def num_missing(self, total: int) -> int:
        """How many of so many rows are not in the output."""
        return max(total - self._output.tally.rows, 0)

    async def write(self, ended: list[EndedRow[str | None]], refused: list[tuple[int, BadRow]]) -> None:
        self._waiting_since = self._waiting_since or time.monotonic()
        for row in ended:
            self._output.write(answer_of(row.number, row.event, row.note))
        for _, bad in refused:
            self._output.write(answer_of_bad(bad))

    def is_due(self) -> bool:
        return self._waiting_since is not None and time.monotonic() - self._waiting_since > SYNC_S

    async def sync(self) -> None:
        self._output.sync()
        self._waiting_since = None

    def close(self) -> None:
        """Everything is there."""
        self._save(finished=True)

    def _save(self, **changed: str | bool) -> None:
        self._state = msgspec.structs.replace(self._state, **changed)
        save_state(self._path, self._state)


class _Shown:
    """What the driver says, on the run's progress."""

    def __init__(self, progress: Progress, output: Output, total: int) -> None:
        self._progress = progress
        self._output = output
        self._total = total

    def say(self, words: str) -> None:
        self._progress.say(words)

    def wait(self, why: str | None) -> None:
        self._progress.wait(why)

    def moved(self) -> None:
        self._progress.update(self._output.tally, self._total)
