"""From a job's failure to what its caller is told."""

from __future__ import annotations

import re
from typing import Final

from penstock.messages import Error
from producer.gateway.errors import ApiError, BadRequest, Conflict, NotFound, TooSlow

_QUOTED: Final = re.compile(r"`(?P<name>[a-z_]+)`")
_FINAL: Final = {"x-should-retry": "false"}
"""To OpenAI's clients, which would put the same job in again."""


class JobCancelled(Conflict):
    """Somebody cancelled the job."""

    @property
    def headers(self) -> dict[str, str]:
        """Not to be tried again."""
        return _FINAL


class JobTooSlow(TooSlow):
    """The job, or its caller's patience, ran out of time."""

    @property
    def headers(self) -> dict[str, str]:
        """Not to be tried again: it would take as long."""
        return _FINAL


class JobError(ApiError):
    """The engine failed at the job, as often as it was tried."""

    @property
    def headers(self) -> dict[str, str]:
        """Not to be tried again: the queue has done so."""
        return _FINAL


def error_of(error: Error, prompt_param: str | None = None) -> ApiError:
    """A `failed` event's error as a reply.

    Args:
        prompt_param: the request's name for the prompt.
    """
    words = error.message
    match error.type:
        case "prompt_too_long":
            return BadRequest(words, param=prompt_param, code="context_length_exceeded")
        case "model_not_served":
            return NotFound(words, param="model", code="model_not_found")
        case "invalid_job":
            quoted = _QUOTED.search(words)
            return BadRequest(words, param=quoted["name"] if quoted else None, code="invalid_job")
        case "job_too_large" | "result_too_large":
            return BadRequest(words, code=error.type)
        case "cancelled":
            return JobCancelled(words, code="cancelled")
        case "deadline_exceeded":
            return JobTooSlow(words, code="deadline_exceeded")
        case _:
            return JobError(words, code=error.type)
