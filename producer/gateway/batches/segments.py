"""What a batch has written so far: numbered segments in its folder, each an object of its own.

Object storages can't append, so the output grows by segments. One segment is output lines, then error lines,
then an index in JSON; how long each part is stands in its name, so that a listing alone says how far it is:

    EPOCH-NUMBER-OUTPUTLINES-OUTPUTBYTES-ERRORLINES-ERRORBYTES.segment
    EPOCH.json     the segments of earlier epochs that count, in order: what a driver found when it began
    invalid        error lines of the input's bad lines, from the validation: the errors begin with them

The last epoch's list and that epoch's own segments are the output. A driver that was replaced and does not
know it may still write a segment; it is in nobody's list, and its rows, which it could not trim, are the new
driver's to write. So two drivers make neither a gap nor a row that is there twice. A segment is written
before its rows are trimmed from the done stream; rows that are met again there, after a crash in between, are
known from the index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from penstock.errors import PenstockError
from producer.answers import RowSet
from producer.gateway.storage import Storage

INVALID: Final = "invalid"
_SUFFIX: Final = ".segment"
_LIST: Final = ".json"
_EPOCH_DIGITS: Final = 16


RowOf: TypeAlias = Callable[[bytes], int]
"""From a line of the output to the row whose end it is."""


class Totals(Struct, frozen=True):
    """Counts over rows that have ended."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Totals) -> Totals:
        mine, others = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Totals(*(one + two for one, two in zip(mine, others, strict=True)))


class Segment(Struct, frozen=True):
    """A segment's name, taken apart."""

    epoch: str
    number: int
    output_lines: int
    output_bytes: int
    error_lines: int
    error_bytes: int

    @property
    def name(self) -> str:
        """As it is called."""
        parts = (self.output_lines, self.output_bytes, self.error_lines, self.error_bytes)
        return f"{self.epoch}-{self.number:08d}-{'-'.join(map(str, parts))}{_SUFFIX}"

    @classmethod
    def parse(cls, name: str) -> Segment:
        """From what it is called."""
        epoch, *numbers = name.removesuffix(_SUFFIX).split("-")
        return cls(epoch, *map(int, numbers))


class Index(Struct, frozen=True):
    """The end of a segment: whose lines these are."""

    rows: list[int]
    totals: Totals


class EpochBehind(PenstockError):
    """The server gave an epoch that is older than one before: it lost its data, and its clock is wrong."""


class _Accepted(Struct, frozen=True):
    segments: list[str]


_index_decoder = msgspec.json.Decoder(Index)
_accepted_decoder = msgspec.json.Decoder(_Accepted)


def find_segments(storage: Storage, folder: str) -> list[Segment]:
    """The segments that count, in the order of the output."""
    names = storage.names(folder)
    last = _last_epoch(names)
    if not last:
        return []
    accepted = _accepted_decoder.decode(storage.read(f"{folder}/{last}{_LIST}")).segments
    own = [name for name in names if name.endswith(_SUFFIX) and name.startswith(f"{last}-")]
    return [Segment.parse(name) for name in (*accepted, *own)]


def refuse_older(storage: Storage, folder: str, epoch: str) -> None:
    """See that an epoch that begins is behind all others, as only the last one counts.

    Raises:
        EpochBehind: it is not.
    """
    last = _last_epoch(storage.names(folder))
    if last >= epoch:
        raise EpochBehind(
            f"the server's clock is behind what it was when a gateway took this batch last (epoch {epoch}, "
            f"after {last}); the batch goes on when the clock has caught up"
        )


def _last_epoch(names: list[str]) -> str:
    return max((name.removesuffix(_LIST) for name in names if _is_list(name)), default="")


def _is_list(name: str) -> bool:
    return name.endswith(_LIST) and len(name) == _EPOCH_DIGITS + len(_LIST) and name[:1].isdigit()


def accept_segments(storage: Storage, folder: str, epoch: str, segments: list[Segment]) -> None:
    """An epoch begins with these."""
    names = [segment.name for segment in segments]
    storage.write(f"{folder}/{epoch}{_LIST}", msgspec.json.encode(_Accepted(names)))


def read_index(storage: Storage, folder: str, segment: Segment) -> Index:
    """Whose lines are in a segment."""
    with storage.open(f"{folder}/{segment.name}") as file:
        file.seek(segment.output_bytes + segment.error_bytes)
        return _index_decoder.decode(file.read())


class Written:
    """What is in the segments, and what is yet to be put into the next one. Blocks; one thread at a time."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder
        self.epoch = ""
        self._number = 0
        self.rows = RowSet()
        """Rows that have ended, those of the validation included."""
        self.totals = Totals()
        self.segments: list[Segment] = []
        self.invalid_lines = 0
        self._outputs: list[bytes] = []
        self._errors: list[bytes] = []
        self._fresh: list[int] = []
        self._fresh_totals = Totals()
        self.waiting_bytes = 0
        """Of lines that no segment has yet."""

    @property
    def output_lines(self) -> int:
        """In the segments."""
        return sum(segment.output_lines for segment in self.segments)

    @property
    def error_lines(self) -> int:
        """In the segments and from the validation."""
        return self.invalid_lines + sum(segment.error_lines for segment in self.segments)

    def begin(self, epoch: str, row_of: RowOf) -> None:
        """Go on, under an epoch that has just been taken, from what is stored.

        Raises:
            EpochBehind: the epoch is older than what is stored.
        """
        if epoch == self.epoch:
            return
        if self.epoch:
            self.store()  # counts if nobody else had the batch in between
        refuse_older(self._storage, self._folder, epoch)
        found = find_segments(self._storage, self._folder)
        self.epoch, self.segments = epoch, found
        self._outputs, self._errors, self._fresh, self._fresh_totals = [], [], [], Totals()
        self.rows, self.totals, self.waiting_bytes = RowSet(), Totals(), 0
        self._take_invalid(row_of)
        for segment in found:
            index = read_index(self._storage, self._folder, segment)
            self.totals += index.totals
            for row in index.rows:
                self.rows.add(row)
        accept_segments(self._storage, self._folder, epoch, found)
        self._number = 0

    def _take_invalid(self, row_of: RowOf) -> None:
        self.invalid_lines = 0
        try:
            with self._storage.open(f"{self._folder}/{INVALID}") as file:
                for line in file:
                    self.rows.add(row_of(line))
                    self.invalid_lines += 1
        except FileNotFoundError:
            return
        self.totals += Totals(failed=self.invalid_lines)

    def add(self, row: int, line: bytes, totals: Totals) -> None:
        """A row's end: an output line where the totals say that it was completed, else an error line."""
        if row in self.rows:
            return
        self.rows.add(row)
        self._fresh.append(row)
        (self._outputs if totals.completed else self._errors).append(line)
        self._fresh_totals += totals
        self.totals += totals
        self.waiting_bytes += len(line)

    def store(self) -> bool:
        """Write a segment of what waits, if anything does; whether it did."""
        if not self._fresh:
            return False
        outputs, errors = b"".join(self._outputs), b"".join(self._errors)
        segment = Segment(
            self.epoch, self._number, len(self._outputs), len(outputs), len(self._errors), len(errors)
        )
        index = msgspec.json.encode(Index(self._fresh, self._fresh_totals))
        self._storage.write(f"{self._folder}/{segment.name}", outputs + errors + index)
        self._number += 1
        self.segments.append(segment)
        self._outputs, self._errors, self._fresh, self._fresh_totals = [], [], [], Totals()
        self.waiting_bytes = 0
        return True
