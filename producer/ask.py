"""The verbs about one job: submit, status, cancel."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.client import Client
from penstock.errors import InvalidJob, JobFailed
from penstock.keys import DEFAULT_LANE, JobId, Keys, check_lane
from penstock.link import Link
from penstock.messages import (
    Done,
    Event,
    Failed,
    Job,
    Message,
    SamplingParams,
    Tokens,
    decode_job,
    encode_event,
)
from penstock.presence import alive_consumers, in_words
from penstock.status import Ended, Expired, JobStatus, Leased, Lost, Queued, Released, Unknown
from producer.errors import UsageError
from producer.where import Where, find_server

if TYPE_CHECKING:
    from producer.flags import PromptFlags, ReplyFlags

_PATIENCE_S = 1.5
"""Silence after which `submit` says what it is waiting for."""


def run_submit(where: Where, job: Job, lane: str, reply: ReplyFlags) -> int:
    """Send one job, and wait for its answer unless told not to."""
    _check_lane(lane)
    return asyncio.run(_submit(find_server(where), job, lane, reply, where.flag))


def run_status(where: Where, job_id: str) -> int:
    """Print where a job is; the exit status is 1 where nothing will come of it any more."""
    _check_id(job_id)

    async def ask(url: str) -> tuple[JobStatus, str | None]:
        async with Client(url) as client:
            status = await client.status(job_id)
        waiting = isinstance(status, Queued | Released)
        return status, await _why_waiting(url) if waiting else None

    status, why = asyncio.run(ask(find_server(where)))
    print(describe(status) + (f" ({why})" if why else ""))
    return int(isinstance(status, Expired | Lost | Unknown))


def run_cancel(where: Where, job_id: str) -> int:
    """Cancel a job; the exit status is 1 where it had ended already or never was."""
    _check_id(job_id)

    async def ask(url: str) -> tuple[bool, JobStatus]:
        async with Client(url) as client:
            return await client.cancel(job_id), await client.status(job_id)

    cancelled, status = asyncio.run(ask(find_server(where)))
    print("cancelled" if cancelled else f"not cancelled: {describe(status)}")
    return int(not cancelled)


def make_job(prompt: str | None, sampling: dict[str, Any], about: PromptFlags, reply: ReplyFlags) -> Job:
    """A checked job of a prompt, or of what standard input has, and the parameters that were given.

    Raises:
        InvalidJob: the text is empty, or a parameter is out of range.
        UsageError: the text is not UTF-8, or several outputs are to be printed as they come.
    """
    params = SamplingParams(**sampling)
    if reply.stream and params.n > 1 and not reply.json:
        raise UsageError("--stream prints one output as it comes; with --n, add --json or leave --stream out")
    text = _read_prompt(prompt)
    if not text:
        raise InvalidJob("the prompt is empty; a job needs at least one character")
    given: dict[str, Any] = {"messages": [Message("user", text)]} if about.chat else {"prompt": text}
    try:
        job = Job(**given, kind=about.kind, sampling_params=params, stream=reply.stream)
        return decode_job(msgspec.json.encode(job))
    except UnicodeEncodeError:
        # In some locales Python lets bytes that are not UTF-8 through, as lone surrogates.
        raise UsageError("the prompt, or a text to stop at, is not UTF-8 text") from None


def answer_text(done: Done) -> str:
    """What was asked for, for a person: text, one numbered text a sample, a score, or a vector."""
    if done.score is not None:
        return f"{done.score.logprob:.6g}"
    if done.embedding is not None:
        return msgspec.json.encode(done.embedding).decode()
    if len(done.outputs) == 1:
        return done.text
    return "\n".join(f"[{output.index}] {output.text}" for output in done.outputs)


def describe(status: JobStatus) -> str:
    """A status in words."""
    match status:
        case Queued(ahead=0):
            return "queued, next in its lane"
        case Queued(ahead=ahead):
            return f"queued, about {ahead} ahead"
        case Leased(consumer=name, deliveries=deliveries, idle_ms=idle):
            again = f", delivery {deliveries}" if deliveries > 1 else ""
            return f"running on {name}{again}, lease renewed {idle / 1000:.1f} s ago"
        case Released():
            return "given back by a consumer; another takes it up"
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


async def _submit(url: str, job: Job, lane: str, reply: ReplyFlags, flag: str) -> int:
    async with Client(url) as client:
        job_id = await client.submit(job, lane)
        if not reply.wait:
            print(job_id)
            return 0
        watch = asyncio.create_task(_say_why_waiting(url))
        show = _Printer(as_json=reply.json)
        try:
            async with asyncio.timeout(reply.timeout):
                async for _, event in client.stream(job_id):
                    watch.cancel()
                    show(event)
                    if isinstance(event, Failed):
                        raise JobFailed(job_id, event.error)
        except TimeoutError:
            return _goes_on(job_id, flag, f"no answer within {reply.timeout:g} s", 1)
        except asyncio.CancelledError:
            return _goes_on(job_id, flag, "stopped waiting", 130)
        finally:
            watch.cancel()
    return 0


def _goes_on(job_id: str, flag: str, why: str, status: int) -> int:
    print(f"penstock: {why}; the job goes on: penstock status{flag} {job_id}", file=sys.stderr)
    return status


class _Printer:
    """Prints text as it comes, each character once, or whole events."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._printed = 0

    def __call__(self, event: Event) -> None:
        if self._as_json:
            print(encode_event(event).decode(), flush=True)
            return
        match event:
            case Tokens():
                print(event.text, end="", flush=True)
                self._printed = event.text_offset + len(event.text)
            case Done():
                print(answer_text(event)[self._printed :], flush=True)
            case Failed():
                print(end="\n" if self._printed else "", flush=True)


async def _say_why_waiting(url: str) -> None:
    await asyncio.sleep(_PATIENCE_S)
    if why := await _why_waiting(url):
        print(f"waiting: {why}", file=sys.stderr)


async def _why_waiting(url: str) -> str | None:
    link = Link(url)
    try:
        return in_words(await alive_consumers(link, Keys()))
    finally:
        await link.aclose()


def _read_prompt(prompt: str | None) -> str:
    if prompt not in (None, "-"):
        return prompt
    if sys.stdin.isatty():
        print("Type the prompt, then Ctrl-D:", file=sys.stderr)
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error}") from None


def _check_id(job_id: str) -> None:
    if re.fullmatch(r"\d+-\d+", job_id):
        raise UsageError(
            f"{job_id} is an entry's id; prefix the lane to make it a job's id, as in {DEFAULT_LANE}.{job_id}"
        )
    JobId.parse(job_id)


def _check_lane(lane: str) -> None:
    try:
        check_lane(lane)
    except ValueError as error:
        raise UsageError(str(error)) from None
