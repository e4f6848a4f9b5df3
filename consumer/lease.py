"""A claimed job: what the broker hands on, and what every later state change is checked against."""

from __future__ import annotations

from msgspec import Struct

from penstock.keys import JobId


class Lease(Struct, frozen=True, kw_only=True):
    """One pending entry that this consumer holds. Its token is (consumer, `deliveries`)."""

    job_id: JobId
    key: str
    """The job id as text: the name by which the whole consumer knows this job."""
    deliveries: int
    """How often the entry was handed out, this time included; renewals do not count."""
    job: bytes | None
    """The job's JSON as it stands in the entry; None where the entry has no such field."""

    @property
    def request_id(self) -> str:
        """Name of this run of the job in the engine: output of an earlier run is never taken for its own."""
        return f"{self.key}/{self.deliveries}"


def job_key(request_id: str) -> str:
    """The job id in a lease's request id."""
    return request_id.rpartition("/")[0]


class Ending(Struct, frozen=True, kw_only=True):
    """All that `commit` writes for one job."""

    lease: Lease
    terminal_id: str
    terminal: bytes
    completed: bool
    """Which of a batch's counters moves: completed or failed."""
    result_ttl_ms: int
    tokens_id: str = ""
    tokens: bytes = b""
    """The last `tokens` event of a streamed job, written together with its end."""
    batch: str | None = None
    row: int | None = None


class Progress(Struct, frozen=True, kw_only=True):
    """One `tokens` event to append to a job's result stream."""

    lease: Lease
    num_before: int
    """Tokens published before this event."""
    event_id: str
    event: bytes
    ttl_ms: int
    """How long the unfinished stream is kept; its end sets the result's own time."""
