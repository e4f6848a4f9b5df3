"""A claimed job: what the broker hands on, and what every later state change is checked against."""

from __future__ import annotations

from msgspec import Struct

from penstock.keys import JobId
from penstock.messages import Error


class Lease(Struct, frozen=True, kw_only=True):
    """One pending entry that this consumer holds. Its token is (consumer, `deliveries`)."""

    job_id: JobId
    key: str
    """The job id as text: the name by which the whole consumer knows this job."""
    deliveries: int
    """How often the entry was handed out, this time included; renewals do not count."""
    job: bytes | None
    """The job's JSON as it stands in the entry; None where the entry has no such field."""
    charged: int = 0
    """Tokens that its lane was charged for it when it was claimed."""
    num_failures: int = 0
    """Attempts at it that failed."""
    waited_ms: int = 0
    """Between its enqueue and this claim, by the server's clock."""
    claimed_at: float = 0.0
    """Monotonic time, in seconds, at which the claim was answered."""
    serial: int = 0
    """Unique in this process: a server that has lost its last second hands out the same token again."""

    @property
    def request_id(self) -> str:
        """Name of this run of the job in the engine: output of an earlier run is never taken for its own."""
        return f"{self.key}/{self.deliveries}.{self.serial}"


def job_key(request_id: str) -> str:
    """The job id in a lease's request id."""
    return request_id.rpartition("/")[0]


class Failure(Struct, frozen=True, kw_only=True):
    """A failed attempt at a job."""

    error: Error
    max_attempts: int


DROP_TOKENS = "drop"
"""As a `tokens` event's id: what was published were checkpoints of a job that does not stream."""


class Ending(Struct, frozen=True, kw_only=True):
    """All that `commit` writes for one job."""

    lease: Lease
    terminal_id: str
    terminal: bytes
    completed: bool
    """Which of a batch's counters moves: completed or failed."""
    result_ttl_ms: int
    num_tokens: int = 0
    """What the job cost: tokens of its prompt and its outputs. 0 where it never got as far."""
    tokens_id: str = ""
    """Of a streamed job's last `tokens` event, written with its end; `DROP_TOKENS` removes what there is."""
    tokens: bytes = b""
    num_before: int = 0
    """Of a streamed job: tokens that its stream must hold before this. 0 where the job does not stream."""
    failure: Failure | None = None
    """Where another attempt may help: the job then ends only if this was its last."""
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
    drop: bool = False
    """Remove what was published before: checkpoints of another model. Ids go on behind theirs."""
