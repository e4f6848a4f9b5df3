"""Where a job is. Computed by a script from what is on the server; nothing keeps a status."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from penstock.keys import GROUP, JobId, Keys
from penstock.link import Link
from penstock.messages import Done, Failed, decode_event
from penstock.scripts import STATUS


class Queued(Struct, frozen=True, kw_only=True, tag="queued", tag_field="state"):
    """The job waits for its first consumer."""

    ahead: int
    """About how many jobs of its lane are before it, from its place in time; exact when 0 or 1 wait."""


class Leased(Struct, frozen=True, kw_only=True, tag="leased", tag_field="state"):
    """A consumer has the job, or died with it and its lease runs out."""

    consumer: str
    deliveries: int
    """How often the job was handed out."""
    idle_ms: int
    """Since the lease was taken or last renewed."""


class Released(Struct, frozen=True, kw_only=True, tag="released", tag_field="state"):
    """A consumer gave the job back; another takes it up, at once or after a delay."""

    deliveries: int
    idle_ms: int


class Ended(Struct, frozen=True, kw_only=True, tag="ended", tag_field="state"):
    """The job has ended, well or not; its result is still kept."""

    event_id: str
    event: Done | Failed


class Expired(Struct, frozen=True, tag="expired", tag_field="state"):
    """The server gave out this id and holds nothing of the job any more.

    Its result expired, or was deleted, or the job was a row of a batch, whose end is in the batch's done
    stream, or the server lost data.
    """


class Lost(Struct, frozen=True, tag="lost", tag_field="state"):
    """Parts of the job are there, but nothing will ever finish it: the server lost data, or someone
    acknowledged the job by hand."""


class Unknown(Struct, frozen=True, tag="unknown", tag_field="state"):
    """The server never gave out this id, or has lost everything since."""


JobStatus = Queued | Leased | Released | Ended | Expired | Lost | Unknown


async def read_status(link: Link, keys: Keys, job_id: JobId) -> JobStatus:
    """Ask the server once.

    Raises:
        ServerError: the server cannot be asked.
    """
    reply = await link.script(
        STATUS,
        [keys.jobs(job_id.lane), keys.result(str(job_id))],
        [GROUP, job_id.entry, job_id.nonce or ""],
    )
    return _decode(reply)


def _decode(reply: list[Any]) -> JobStatus:
    match reply:
        case [b"queued", ahead]:
            return Queued(ahead=ahead)
        case [b"leased", consumer, deliveries, idle_ms]:
            return Leased(consumer=consumer.decode(), deliveries=deliveries, idle_ms=idle_ms)
        case [b"released", deliveries, idle_ms]:
            return Released(deliveries=deliveries, idle_ms=idle_ms)
        case [b"ended", event_id, event]:
            return _ended(event_id.decode(), event)
        case [b"expired"]:
            return Expired()
        case [b"lost"]:
            return Lost()
        case _:
            return Unknown()


def _ended(event_id: str, data: bytes) -> JobStatus:
    event = decode_event(data)
    if isinstance(event, Done | Failed):
        return Ended(event_id=event_id, event=event)
    return Lost()
