"""The look at a whole input before its first row is sent, some hundreds of lines at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, Final

from msgspec import Struct

from producer.gateway.batches.custom_ids import CustomIds
from producer.gateway.batches.lines import BadLine, Checker, bad
from producer.gateway.batches.objects import BatchError
from producer.gateway.batches.reply_lines import ReplyLines
from producer.gateway.batches.segments import INVALID
from producer.gateway.storage import Storage
from producer.rows import rows_of
from producer.threads import in_thread

LINES: Final = 500
"""Lines of one visit to a thread: others get their turn."""
MAX_ERRORS: Final = 1000
"""Most errors that a batch's object names; what the error file names has no limit."""


class Verdict(Struct, frozen=True):
    """What was found."""

    total: int
    """Lines that are not blank."""
    bad: int
    errors: list[BatchError]
    """The first ones."""
    model: str | None
    """Of the first good line."""


class Validation:
    """Checks one batch's input and writes the error lines of its bad lines beside it."""

    def __init__(
        self,
        batch_id: str,
        open_input: Callable[[], IO[bytes]],
        checker: Checker,
        storage: Storage,
        folder: str,
    ) -> None:
        self._batch_id = batch_id
        self._open_input = open_input
        self._checker = checker
        self._storage = storage
        self._folder = folder
        self._known = CustomIds()
        self._lines = ReplyLines(batch_id)
        self._total = self._bad = 0
        self._errors: list[BatchError] = []
        self._model: str | None = None

    async def run(self) -> Verdict:
        """Read the input to its end.

        Raises:
            FileNotFoundError: there is no input.
        """
        # Whatever was opened is closed, also where this is cancelled while it is being opened.
        opened = ExitStack()
        try:
            rows, errors = await in_thread(self._open, opened)
            while await in_thread(self._some, rows, errors):
                pass
        except BaseException as error:
            await in_thread(opened.__exit__, type(error), error, None)
            raise
        await in_thread(opened.close)
        return Verdict(self._total, self._bad, self._errors, self._model)

    def _open(self, opened: ExitStack) -> tuple[Iterator[tuple[int, bytes]], IO[bytes]]:
        """The input's lines, and where the error lines go."""
        rows = rows_of(opened.enter_context(self._open_input()))
        return rows, opened.enter_context(self._storage.writing(f"{self._folder}/{INVALID}"))

    def _some(self, rows: Iterator[tuple[int, bytes]], errors: IO[bytes]) -> bool:
        for found, (number, line) in enumerate(rows, 1):
            self._total += 1
            if (wrong := self._wrong(number, line)) is not None:
                self._bad += 1
                if len(self._errors) < MAX_ERRORS:
                    self._errors.append(wrong.error)
                errors.write(self._lines.unsent(number, wrong)[0])
            if found == LINES:
                return True
        return False

    def _wrong(self, number: int, line: bytes) -> BadLine | None:
        read = self._checker.read(number, line, self._batch_id)
        custom_id = read.custom_id
        is_new = custom_id is None or self._known.add(custom_id)
        if isinstance(read, BadLine):
            return read
        if not is_new:
            message = f"The custom_id '{custom_id}' is in an earlier line already."
            return bad(number, "duplicate_custom_id", message, "custom_id", custom_id)
        self._model = self._model or read.model
        return None
