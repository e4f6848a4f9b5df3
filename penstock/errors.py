"""The exception tree.

PenstockError
├── InvalidJob (ValueError)        a job that no consumer could run; nothing was enqueued
│   └── JobTooLarge                its JSON is longer than the limit
├── InvalidJobId (ValueError)      a string that is not a job id
├── JobFailed                      the job ended with a `failed` event; `.error` says why
├── JobLost                        the server knows the job no more: its result expired or was lost
├── ResultTimeout (TimeoutError)   no terminal event within the caller's timeout; the job goes on
├── BatchExists                    the batch's name is taken
├── BatchUnknown                   there is no such batch, or its owner deleted it; nothing was enqueued
├── CursorMoved                    another driver advanced the batch; nothing was enqueued
├── BatchTaken                     another drives the batch; nothing was changed; `.retry_after_s`
├── QueueFull                      the lane or the server has no room; nothing was enqueued; `.retry_after_s`
│   └── ServerFull (ServerError)   the server has no memory left for more
├── NoSuchLetter (LookupError)     there is no dead letter of this id
├── InstallationError (RuntimeError)   what is installed beside penstock keeps it from working
└── ServerError
    ├── ServerFull (QueueFull)                the same as above
    ├── ServerUnavailable (ConnectionError)   the server cannot be reached, or the connection broke
    └── ServerUnsuitable                      too old, evicting, or otherwise unable to keep our promises
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.messages import Error


class PenstockError(Exception):
    """Base of everything that penstock raises on purpose."""

    accepted: Sequence[str] = ()
    """Ids of the jobs that were safely enqueued before `submit_many` was stopped by this; else empty."""


class InvalidJob(PenstockError, ValueError):
    """The job breaks the contract. The message says what, where, and what would be right."""


class JobTooLarge(InvalidJob):
    """The job's JSON is longer than the limit."""


class InvalidJobId(PenstockError, ValueError):
    """The text is not of the form `LANE.ENTRY` or `LANE.ENTRY.NONCE`."""


class JobFailed(PenstockError):
    """The job ended with a `failed` event."""

    def __init__(self, job_id: str, error: Error) -> None:
        super().__init__(f"job {job_id} failed: {error.type}: {error.message}")
        self.job_id = job_id
        self.error = error


class JobLost(PenstockError):
    """The server knows the job no more: its result expired, or the server lost data."""


class ResultTimeout(PenstockError, TimeoutError):
    """The terminal event did not arrive in time. The job is untouched."""


class BatchExists(PenstockError):
    """A batch of this name exists. `Client.batch` gives a handle on it."""


class BatchUnknown(PenstockError):
    """There is no such batch: it was never created, or its owner deleted it. Nothing was enqueued."""


class CursorMoved(PenstockError):
    """The batch's cursor is not where this driver expects it: another driver is at work."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"the batch's cursor is at {actual!r}, not at {expected!r}; nothing was enqueued")
        self.expected = expected
        self.actual = actual


class BatchTaken(PenstockError):
    """Another drives the batch. Nothing was changed."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds for which it is the other's at least; it may stay so."""


class QueueFull(PenstockError):
    """There is no room for more jobs. Nothing was enqueued."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds after which there may be room, estimated from how long jobs wait now."""


class NoSuchLetter(PenstockError, LookupError):
    """There is no dead letter of this id: it was requeued, dropped, or its time is over."""


class InstallationError(PenstockError, RuntimeError):
    """Something that is installed beside penstock keeps it from working."""


class ServerError(PenstockError):
    """Something about the Redis or Valkey server."""


class ServerFull(ServerError, QueueFull):
    """The server has no memory left. Nothing was enqueued; finished jobs make room again."""


class ServerUnavailable(ServerError, ConnectionError):
    """The server cannot be reached. An enqueue cut off by this may or may not have been accepted."""


class ServerUnsuitable(ServerError):
    """The server is too old, or is set up so that jobs could be lost."""
