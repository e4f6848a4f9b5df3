"""The verb `status`: where a job is, in words or as JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.attempts import Attempt
from penstock.client import Client
from penstock.keys import DEFAULT_LANE, JobId
from penstock.lanes import LANE_PAUSED
from penstock.link import Link
from penstock.messages import Done, Failed
from penstock.presence import server_time_ms
from penstock.status import Ended, Expired, JobStatus, Leased, Lost, Queued, Released, Unknown
from producer.errors import UsageError
from producer.where import Where, find_server


def run_status(where: Where, job_id: str, *, as_json: bool) -> int:
    """Print where a job is; the exit status is 1 where nothing will come of it any more."""
    check_id(job_id)

    async def ask(url: str) -> tuple[JobStatus, int]:
        async with Client(url) as client:
            status = await client.status(job_id)
        waits = isinstance(status, Released) and status.retry_at_ms > 0
        return status, await _now_ms(url) if waits else 0

    status, now_ms = asyncio.run(ask(find_server(where)))
    if as_json:
        described: dict[str, Any] = {"job_id": job_id, **msgspec.to_builtins(status)}
        print(msgspec.json.encode(described).decode())
    else:
        print(describe(status, JobId.parse(job_id).lane, now_ms))
    return int(isinstance(status, Expired | Lost | Unknown))


def describe(status: JobStatus, lane: str, now_ms: int = 0) -> str:
    """The status of a job of this lane in words, at the server's time `now_ms`."""
    match status:
        case Queued(ahead=ahead):
            place = "next" if ahead == 0 else f"about {ahead:,} ahead"
            return f"queued, {place} in its lane{_in_brackets(reason(status, lane))}"
        case Leased(consumer=name, deliveries=deliveries, idle_ms=idle, attempts=attempts):
            again = f", delivery {deliveries}" if deliveries > 1 else ""
            history = f"; {failed(attempts)}" if attempts else ""
            return f"running on {name}{again}, lease renewed {idle / 1000:.1f} s ago{history}"
        case Released():
            return _released(status, lane, now_ms)
        case Ended(event=Done() as done):
            return f"done: {answer_text(done)}"
        case Ended(event=event):
            assert isinstance(event, Failed)
            return f"failed: {event.error.type}: {event.error.message}"
        case Expired():
            return "gone: its result expired, or it was a row of a batch"
        case Lost():
            return "lost: parts of it are there, but nothing will ever finish it"
        case Unknown():
            return "unknown: this server never gave out this id, or has lost everything since"


def reason(status: Queued | Released, lane: str) -> str:
    """What a job waits for beside its turn; empty where it is its turn alone."""
    if status.waits_for != "resume":
        return status.detail
    flag = f" --lane {lane}" if status.detail == LANE_PAUSED else ""
    return f"{status.detail}; `penstock resume{flag}` lets it go on"


def answer_text(done: Done) -> str:
    """What was asked for, for a person: text, one numbered text a sample, a score, or a vector."""
    if done.score is not None:
        return f"{done.score.logprob:.6g}"
    if done.embedding is not None:
        return msgspec.json.encode(done.embedding).decode()
    if len(done.outputs) == 1:
        return done.text
    return "\n".join(f"[{output.index}] {output.text}" for output in done.outputs)


def check_id(job_id: str) -> None:
    """Refuse what is no job's id.

    Raises:
        UsageError: it is an entry's id, which lacks the lane.
        InvalidJobId: it is nothing of ours.
    """
    if re.fullmatch(r"\d+-\d+", job_id):
        raise UsageError(
            f"{job_id} is an entry's id; prefix the lane to make it a job's id, as in {DEFAULT_LANE}.{job_id}"
        )
    JobId.parse(job_id)


def _released(status: Released, lane: str, now_ms: int) -> str:
    why = _in_brackets(reason(status, lane))
    if not status.attempts:
        return f"given back by a consumer; another takes it up{why}"
    wait_s = (status.retry_at_ms - now_ms) / 1000
    again = f"tried again in {wait_s:.1f} s" if wait_s > 0 else "about to be tried again"
    return f"{again}: {failed(status.attempts)}{why}"


def failed(attempts: Sequence[Attempt]) -> str:
    """How the last of the attempts ended."""
    error = attempts[-1].error
    return f"attempt {len(attempts)} failed with {error.type}: {' '.join(error.message.split())}"


def _in_brackets(words: str) -> str:
    return f" ({words})" if words else ""


async def _now_ms(url: str) -> int:
    link = Link(url)
    try:
        return await server_time_ms(link)
    finally:
        await link.aclose()
