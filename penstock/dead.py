"""Dead letters: jobs that failed at their last attempt, with what went wrong each time."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from penstock.attempts import Attempt, decode_attempts
from penstock.errors import InvalidJob, NoSuchLetter
from penstock.follower import parse_entry_id
from penstock.keys import ATTEMPTS, EVENT, JOB, JOB_ID, JobId, Keys, new_nonce
from penstock.link import Link
from penstock.messages import (
    Error,
    Failed,
    Job,
    decode_job,
    decode_terminal,
    encode_job,
)
from penstock.scripts import REQUEUE

LAST_ID = (2**64 - 1, 2**64 - 1)
"""No stream's entry comes behind it."""


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One job that failed at its last attempt."""

    letter_id: str
    """Names the dead letter: its entry in the dead stream."""
    job_id: str
    job: bytes
    """The job's JSON as it was enqueued."""
    event: Failed
    """The end that its client was told."""
    attempts: list[Attempt]
    """Oldest first; the last one has no `retry_at_ms`."""


async def read_letters(link: Link, keys: Keys, after: str, count: int) -> list[DeadLetter]:
    """Up to `count` dead letters behind the letter `after`, oldest first.

    Raises:
        ValueError: `after` is not an entry id.
    """
    if parse_entry_id(after) == LAST_ID:
        return []  # behind which the server allows no range
    entries = await link.command("XRANGE", keys.dead, f"({after}", "+", "COUNT", count)
    return [_letter(entry_id, fields) for entry_id, fields in entries]


async def read_latest_letters(link: Link, keys: Keys, count: int) -> list[DeadLetter]:
    """Up to `count` dead letters, newest first."""
    entries = await link.command("XREVRANGE", keys.dead, "+", "-", "COUNT", count)
    return [_letter(entry_id, fields) for entry_id, fields in entries]


async def read_letter(link: Link, keys: Keys, letter_id: str) -> DeadLetter:
    """One dead letter.

    Raises:
        NoSuchLetter: there is none of this id.
        ValueError: it is not an entry id.
    """
    parse_entry_id(letter_id)
    entries = await link.command("XRANGE", keys.dead, letter_id, letter_id)
    if not entries:
        raise NoSuchLetter(f"there is no dead letter {letter_id}")
    return _letter(*entries[0])


async def requeue(link: Link, keys: Keys, letter_id: str) -> str:
    """Make a new job of a dead letter, with `retry_of` and no row of a batch; gives the new job's id.

    Raises:
        NoSuchLetter: there is none of this id, or somebody else requeued it just now.
        InvalidJob: the job in it cannot be read any more.
    """
    letter = await read_letter(link, keys, letter_id)
    lane, nonce = JobId.parse(letter.job_id).lane, new_nonce()
    job = msgspec.structs.replace(_job(letter), retry_of=letter.job_id, batch=None, row=None)
    entry = await link.script(
        REQUEUE,
        [keys.dead, keys.jobs(lane), keys.lanes, keys.control],
        [letter_id, lane, nonce, encode_job(job)],
    )
    if not entry:
        raise NoSuchLetter(f"there is no dead letter {letter_id}")
    return str(JobId(lane, entry.decode(), nonce))


async def drop(link: Link, keys: Keys, letter_id: str) -> bool:
    """Remove a dead letter; whether there was one.

    Raises:
        ValueError: it is not an entry id.
    """
    parse_entry_id(letter_id)
    return bool(await link.command("XDEL", keys.dead, letter_id))


def _job(letter: DeadLetter) -> Job:
    try:
        return decode_job(letter.job)
    except InvalidJob as error:
        raise InvalidJob(f"the job of dead letter {letter.letter_id}: {error}") from None


def _letter(entry_id: bytes, fields: list[bytes]) -> DeadLetter:
    values: dict[bytes, bytes] = dict(zip(fields[::2], fields[1::2], strict=True))
    return DeadLetter(
        letter_id=entry_id.decode(),
        job_id=values.get(JOB_ID.encode(), b"").decode(errors="replace"),
        job=values.get(JOB.encode(), b""),
        event=_event(values.get(EVENT.encode(), b"")),
        attempts=_attempts(values.get(ATTEMPTS.encode(), b"")),
    )


def _event(data: bytes) -> Failed:
    """The end in a letter: one that cannot be read must not hide the other letters."""
    try:
        event = decode_terminal(data)
    except msgspec.DecodeError:
        event = None
    if isinstance(event, Failed):
        return event
    return Failed(error=Error(type="unreadable", message="the letter's event is not one of penstock's"))


def _attempts(data: bytes) -> list[Attempt]:
    try:
        return decode_attempts(data)
    except msgspec.DecodeError:
        return []
