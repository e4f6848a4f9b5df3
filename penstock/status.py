"""Where a job is. Computed by a script from what is on the server; nothing keeps a status."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from penstock.attempts import Attempt, decode_attempts
from penstock.keys import GROUP, JobId, Keys
from penstock.lanes import LANE_PAUSED, QUEUE_PAUSED
from penstock.link import Link
from penstock.messages import Done, Failed, decode_event
from penstock.presence import alive_consumers, in_words
from penstock.scripts import STATUS

WaitsFor = Literal["turn", "consumer", "model", "resume", "lane"]
"""A job waits for its turn; for a consumer, as none is alive; for a model, as none has finished loading; or
for the queue, or its lane, to be resumed; or for its lane to be declared, after a raw XADD."""


class Queued(Struct, frozen=True, kw_only=True, tag="queued", tag_field="state"):
    """The job waits for its first consumer."""

    ahead: int
    """About how many jobs of its lane are before it, from its place in time; exact when 0 or 1 wait."""
    waits_for: WaitsFor = "turn"
    detail: str = ""
    """The reason in words; empty where the job waits its turn."""


class Leased(Struct, frozen=True, kw_only=True, tag="leased", tag_field="state"):
    """A consumer has the job, or died with it and its lease runs out."""

    consumer: str
    deliveries: int
    """How often the job was handed out."""
    idle_ms: int
    """Since the lease was taken or last renewed."""
    attempts: list[Attempt] = []
    """Those that failed, oldest first."""


class Released(Struct, frozen=True, kw_only=True, tag="released", tag_field="state"):
    """A consumer gave the job back; another takes it up, at once or, after a failure, after a while."""

    deliveries: int
    idle_ms: int
    attempts: list[Attempt] = []
    """Those that failed, oldest first."""
    retry_at_ms: int = 0
    """Server time (Unix milliseconds) before which nobody takes it up; 0 where anybody may now."""
    waits_for: WaitsFor = "turn"
    detail: str = ""


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
    status = _decode(await _ask(link, keys, job_id))
    if not isinstance(status, Queued | Released) or status.waits_for in ("resume", "lane"):
        return status
    consumers = await alive_consumers(link, keys)
    why = in_words(consumers)
    if why is None:
        return status
    return msgspec.structs.replace(status, waits_for="model" if consumers else "consumer", detail=why)


async def read_whether_there(link: Link, keys: Keys, job_id: JobId) -> JobStatus:
    """Ask the server once, without asking what a job waits for.

    Raises:
        ServerError: the server cannot be asked.
    """
    return _decode(await _ask(link, keys, job_id))


async def _ask(link: Link, keys: Keys, job_id: JobId) -> list[Any]:
    return await link.script(
        STATUS,
        [keys.jobs(job_id.lane), keys.result(str(job_id)), keys.lanes, keys.attempts],
        [GROUP, job_id.entry, job_id.nonce or "", job_id.lane, str(job_id)],
    )


_UNDECLARED = (
    "its lane is not declared, so that no consumer knows of it; enqueue by the client or the script, or "
    "declare it with `penstock lanes set`"
)
_PAUSED: dict[bytes, tuple[WaitsFor, str]] = {
    b"": ("turn", ""),
    b"lane": ("resume", LANE_PAUSED),
    b"queue": ("resume", QUEUE_PAUSED),
    b"undeclared": ("lane", _UNDECLARED),
}


def _decode(reply: list[Any]) -> JobStatus:
    match reply:
        case [b"queued", ahead, paused]:
            waits_for, detail = _PAUSED[paused]
            return Queued(ahead=ahead, waits_for=waits_for, detail=detail)
        case [b"leased", consumer, deliveries, idle_ms, failed]:
            name, attempts = consumer.decode(), _attempts(failed)
            return Leased(consumer=name, deliveries=deliveries, idle_ms=idle_ms, attempts=attempts)
        case [b"released", deliveries, idle_ms, failed, paused]:
            return _released(deliveries, idle_ms, _attempts(failed), _PAUSED[paused])
        case [b"ended", event_id, event]:
            return _ended(event_id.decode(), event)
        case [b"expired"]:
            return Expired()
        case [b"lost"]:
            return Lost()
        case _:
            return Unknown()


def _released(deliveries: int, idle_ms: int, attempts: list[Attempt], why: tuple[WaitsFor, str]) -> Released:
    return Released(
        deliveries=deliveries,
        idle_ms=idle_ms,
        attempts=attempts,
        retry_at_ms=attempts[-1].retry_at_ms if attempts else 0,
        waits_for=why[0],
        detail=why[1],
    )


def _attempts(data: bytes) -> list[Attempt]:
    try:
        return decode_attempts(data)
    except msgspec.DecodeError:
        return []  # a newer consumer's


def _ended(event_id: str, data: bytes) -> JobStatus:
    event = decode_event(data)
    if isinstance(event, Done | Failed):
        return Ended(event_id=event_id, event=event)
    return Lost()
