"""A reader's place in a stream, as server-sent events name it and Last-Event-ID gives it back."""

from __future__ import annotations

from msgspec import Struct

from penstock.follower import parse_entry_id
from producer.gateway.errors import BadRequest

WRONG_REQUEST = "Last-Event-ID names an event of another request's stream; send the request that began it"

BEGIN = "0-0"
"""The id of what comes before a job's first event."""


class Place(Struct, frozen=True):
    """Behind an event of a job, or behind the first few messages that the event was told in."""

    handle: str
    """The job's name to its tenant."""
    event_id: str
    told: int | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse `JOB:EVENT`, or `JOB:EVENT:MESSAGES`.

        Raises:
            BadRequest: it is neither.
        """
        try:
            handle, event_id, *told = text.split(":")
            parse_entry_id(event_id)
            if len(told) > 1 or not all(one.isdecimal() for one in told):
                raise ValueError
            return cls(handle, event_id, int(told[0]) if told else None)
        except ValueError:
            raise BadRequest(
                f"Last-Event-ID is {text[:200]!r}; it must be the id of an event of a stream of this route",
                param="Last-Event-ID",
                code="invalid_value",
            ) from None

    def __str__(self) -> str:
        head = f"{self.handle}:{self.event_id}"
        return head if self.told is None else f"{head}:{self.told}"

    def num_told(self, event_id: str, num_messages: int) -> int:
        """How many of an event's messages the reader has."""
        ours, theirs = parse_entry_id(self.event_id), parse_entry_id(event_id)
        if theirs != ours:
            return num_messages if theirs < ours else 0
        return num_messages if self.told is None else self.told
