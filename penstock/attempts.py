"""Failed attempts at a job: kept by the server while the job is tried again, and in its dead letter."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from penstock.messages import Error


class Attempt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One failed attempt at a job."""

    at_ms: int
    """Server time at which it failed."""
    consumer: str
    error: Error
    retry_at_ms: int = 0
    """Server time before which no consumer takes the job up again; 0 where it was the last attempt."""


_decoder = msgspec.json.Decoder(Attempt)


def decode_attempts(data: bytes) -> list[Attempt]:
    """Decode the field `attempts`, an object a line, oldest first.

    Raises:
        msgspec.DecodeError: a line is not one of ours.
    """
    return [_decoder.decode(line) for line in data.splitlines()]
