"""The exception tree.

PenstockError
├── InvalidJob (ValueError)        a job that no consumer could run; nothing was enqueued
├── InvalidJobId (ValueError)      a string that is not a job id
├── JobFailed                      the job ended with a `failed` event; `.error` says why
├── JobLost                        the server knows the job no more: its result expired or was lost
├── ResultTimeout (TimeoutError)   no terminal event within the caller's timeout; the job goes on
├── CursorMoved                    another driver advanced the batch; nothing was enqueued
└── ServerError
    ├── ServerUnavailable (ConnectionError)   the server cannot be reached, or the connection broke
    └── ServerUnsuitable                      too old, evicting, or otherwise unable to keep our promises
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.messages import Error


class PenstockError(Exception):
    """Base of everything that penstock raises on purpose."""


class InvalidJob(PenstockError, ValueError):
    """The job breaks the contract. The message says what, where, and what would be right."""


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


class CursorMoved(PenstockError):
    """The batch's cursor is not where this driver expects it: another driver is at work."""


class ServerError(PenstockError):
    """Something about the Redis or Valkey server."""


class ServerUnavailable(ServerError, ConnectionError):
    """The server cannot be reached. An enqueue cut off by this may or may not have been accepted."""


class ServerUnsuitable(ServerError):
    """The server is too old, or is set up so that jobs could be lost."""
