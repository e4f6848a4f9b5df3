"""The verbs that change one job: submit and cancel."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.client import Client
from penstock.errors import InvalidJob, JobFailed, ServerError
from penstock.keys import JobId
from penstock.messages import Done, Event, Failed, Job, Message, Tokens, decode_job, encode_event
from penstock.status import JobStatus, Queued, Released
from producer.errors import UsageError
from producer.flags import read_object
from producer.status import answer_text, check_id, describe, failed, reason
from producer.where import Where, find_server

if TYPE_CHECKING:
    from producer.flags import DeliveryFlags, PromptFlags, ReplyFlags

_PATIENCE_S = 1.5
"""Silence after which `submit` says what it is waiting for."""


def run_submit(where: Where, job: Job, delivery: DeliveryFlags, reply: ReplyFlags) -> int:
    """Send one job, and wait for its answer unless told not to.

    Raises:
        UsageError: the lane or the idempotency key is not one.
        QueueFull: there is no room for it.
    """
    delivery.check()
    return asyncio.run(_submit(find_server(where), job, delivery, reply, where.flag))


def run_cancel(where: Where, job_id: str) -> int:
    """Cancel a job; the exit status is 1 where it had ended already or never was."""
    check_id(job_id)

    async def ask(url: str) -> tuple[bool, JobStatus]:
        async with Client(url) as client:
            return await client.cancel(job_id), await client.status(job_id)

    cancelled, status = asyncio.run(ask(find_server(where)))
    words = describe(status, JobId.parse(job_id).lane)
    print("cancelled" if cancelled else f"not cancelled: {words}")
    return int(not cancelled)


def make_job(prompt: str | None, given: dict[str, Any], about: PromptFlags, reply: ReplyFlags) -> Job:
    """A checked job of a prompt, or of what standard input has, and the fields that were given.

    Args:
        given: fields of the job that have flags, among them `sampling_params`; they win over `--fields`.

    Raises:
        InvalidJob: the text is empty, a field is unknown, or a parameter is out of range.
        UsageError: the text is not UTF-8, or several outputs are to be printed as they come.
    """
    fields = {} if about.fields is None else read_object("--fields", about.fields)
    params = _merged(fields.pop("sampling_params", None), given["sampling_params"])
    given = {name: value for name, value in given.items() if name != "sampling_params"}
    given |= {"sampling_params": params} if params != {} else {}
    if not {"prompt", "messages", "prompt_token_ids"} & fields.keys() or prompt is not None:
        text = _read_prompt(prompt)
        if not text:
            raise InvalidJob("the prompt is empty; a job needs at least one character")
        given |= {"messages": [Message("user", text)]} if about.chat else {"prompt": text}
    flags: dict[str, Any] = {} if about.kind == "generate" else {"kind": about.kind}
    flags |= {"stream": True} if reply.stream else {}
    try:
        job = decode_job(msgspec.json.encode({**fields, **given, **flags}))
    except UnicodeEncodeError:
        # In some locales Python lets bytes that are not UTF-8 through, as lone surrogates.
        raise UsageError("the prompt, or a text to stop at, is not UTF-8 text") from None
    if reply.stream and job.sampling_params.n > 1 and not reply.json:
        raise UsageError("--stream prints one output as it comes; with --n, add --json or leave --stream out")
    return job


def _merged(fields: Any, flags: dict[str, Any]) -> Any:
    """Sampling parameters of `--fields` below those of flags; what is no object is for the job's check."""
    return {**fields, **flags} if isinstance(fields, dict) else flags if fields is None else fields


async def _submit(url: str, job: Job, delivery: DeliveryFlags, reply: ReplyFlags, flag: str) -> int:
    async with Client(url) as client:
        job_id = await client.submit(job, delivery.lane, idempotency_key=delivery.idempotency_key)
        if not reply.wait:
            print(job_id)
            return 0
        watch = asyncio.create_task(_say_why_waiting(client, job_id))
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


async def _say_why_waiting(client: Client, job_id: str) -> None:
    """Say what the job waits for, each time that it is something else."""
    said = None
    while True:
        await asyncio.sleep(_PATIENCE_S)
        with suppress(ServerError):  # who follows the answer is waiting for the server as well
            why = _why_waiting(await client.status(job_id), JobId.parse(job_id).lane)
            if why and why != said:
                print(f"waiting: {why}", file=sys.stderr)
            said = why or said


def _why_waiting(status: JobStatus, lane: str) -> str:
    if isinstance(status, Released) and status.attempts:
        return f"to be tried again: {failed(status.attempts)}"
    return reason(status, lane) if isinstance(status, Queued | Released) else ""


def _read_prompt(prompt: str | None) -> str:
    if prompt not in (None, "-"):
        return prompt
    if sys.stdin.isatty():
        print("Type the prompt, then Ctrl-D:", file=sys.stderr)
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error}") from None
