"""What a driver drives: rows from a source, ends into a sink, and the queue between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from penstock.client import Client
from penstock.keys import Keys
from penstock.link import Link
from penstock.messages import Job, TerminalEvent

Note = TypeVar("Note")
Refusal = TypeVar("Refusal")
Refused = TypeVar("Refused", covariant=True)


class Planned(Struct, Generic[Note], frozen=True):
    """A row to send."""

    job: Job
    note: Note
    """What the sink wants to know of the row when it has ended."""
    weight: int = 1
    """What it counts towards `Pace.max_weight`, in whatever unit the source likes."""


class EndedRow(Struct, Generic[Note], frozen=True):
    """A row that was sent and has ended."""

    number: int
    job_id: str
    event: TerminalEvent
    note: Note


class Source(Protocol[Note, Refused]):
    """The rows of a batch, the same ones whenever they are read. Called in a thread."""

    def read(self) -> Iterator[tuple[int, bytes]]:
        """Number and text of each row, in order, from the first on. Numbers may leave gaps."""
        ...

    def plan(self, number: int, line: bytes) -> Planned[Note] | Refused:
        """What to send for a row, or why nothing is sent. The job's `row` and `batch` are filled in later."""
        ...


class Sink(Protocol[Note, Refusal]):
    """Where the ends of rows are kept."""

    batch: str
    """The batch's name on the server; empty where it has none yet."""

    def anew(self) -> str:
        """A name under which to begin on the server anew, remembered before it is given."""
        ...

    async def taken(self, epoch: str) -> None:
        """The batch has been taken by this epoch. What was stored under an earlier one until now counts, and
        nothing that still will be."""
        ...

    def __contains__(self, number: int) -> bool:
        """Whether the row's end is here. Called in a thread, too."""
        ...

    async def write(self, ended: list[EndedRow[Note]], refused: list[tuple[int, Refusal]]) -> None:
        """Take ends of rows that are not here yet."""
        ...

    def is_due(self) -> bool:
        """Whether what was written has waited long enough for a `sync`."""
        ...

    async def sync(self) -> None:
        """Return when everything written is stored for good."""
        ...


class Narrator(Protocol):
    """Whoever is told what happens."""

    def say(self, words: str) -> None:
        """Tell something once."""
        ...

    def wait(self, why: str | None) -> None:
        """Why nothing comes, if that is known."""
        ...

    def moved(self) -> None:
        """The sink has got more, or the window was filled."""
        ...


class Queue(Struct, frozen=True):
    """Where the rows go through."""

    client: Client
    link: Link
    """For what the client has no words for."""
    keys: Keys
    lane: str


class Pace(Struct, frozen=True):
    """How much is in flight at most, and how long the batch is this driver's."""

    window: int
    """Rows."""
    max_weight: Callable[[], float] = lambda: float("inf")
    """Sum of the rows' weights, as it is just then; one row is always let through."""
    lease_s: float = 0.0
    """0 where something else sees to it that there is one driver; otherwise somebody has to renew."""
    expected: int | None = None
    """Rows that a batch which is begun now will have, refused ones too, where that is known."""
