"""One job's life, as far as the server knows it: put in, taken, tried again, answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import Struct

from penstock.attempts import Attempt
from penstock.client import Client
from penstock.dead import DeadLetter, read_latest_letters
from penstock.errors import InvalidJob, JobLost, ServerError
from penstock.keys import JOB, NONCE, JobId, Keys
from penstock.link import Link
from penstock.messages import Done, Event, Failed, Job, Tokens, decode_job
from penstock.status import Ended, Expired, JobStatus, Leased, Lost, Queued, Released, Unknown
from producer.status import describe

LOOK_S: Final = 1.0
"""How often a job's status is asked for while nothing comes."""
PAUSE_S: Final = 0.1
"""Between two looks at a job that streams."""
MAX_TEXT: Final = 20_000
"""Characters of an output that are shown while it grows: its end."""
SEARCHED_LETTERS: Final = 200
"""The newest dead letters, among which a failed job's own is looked for."""


_STAGES: Final[dict[type, str]] = {
    Queued: "queued",
    Leased: "running",
    Released: "waits to be tried again",
    Ended: "ended",
    Expired: "gone",
    Lost: "lost",
    Unknown: "unknown",
}


class LifeView(Struct, frozen=True, kw_only=True):
    """A job at one moment."""

    job_id: str
    lane: str
    enqueued_at: float
    """Unix time, by the server's clock."""
    words: str
    """Where it is."""
    is_over: bool
    stage: str = "not known"
    """The same in a word or two, which changes seldom enough to be read out."""
    is_known: bool = True
    """Whether the server ever gave out this id, as far as it remembers."""
    consumer: str | None = None
    deliveries: int = 0
    attempts: list[Attempt] = []
    """Those that failed, oldest first."""
    num_events: int = 0
    """`tokens` events so far."""
    num_tokens: int = 0
    """Tokens in them."""
    texts: dict[int, str] = {}
    """What there is of each sample."""
    outcome: Done | Failed | None = None
    letter: DeadLetter | None = None
    """What became of one that failed at its last attempt; it outlives the job's answers."""


class Watched:
    """A job that is followed: its events as they come, and its status beside them."""

    def __init__(self, client: Client, link: Link, keys: Keys, job_id: JobId) -> None:
        self._client = client
        self._link, self._keys = link, keys
        self._job_id = job_id
        self._texts: dict[int, str] = {}
        self._num_events = self._num_tokens = 0
        self._outcome: Done | Failed | None = None
        self._is_read = False
        self._news = asyncio.Event()

    async def views(self) -> AsyncGenerator[LifeView]:
        """The job as it goes on, up to its end."""
        reading = asyncio.create_task(self._read())
        try:
            while True:
                self._news.clear()
                # Its end is known before the status is asked for, so that the last view has both.
                is_read = self._is_read
                view = await self._view()
                yield view
                if is_read and view.is_over:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), LOOK_S)
                await asyncio.sleep(PAUSE_S)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        with suppress(JobLost, ServerError):
            async for _, event in self._client.stream(str(self._job_id)):
                self._take(event)
                self._news.set()
        self._is_read = True
        self._news.set()

    def _take(self, event: Event) -> None:
        match event:
            case Tokens():
                self._num_events += 1
                self._num_tokens += len(event.token_ids)
                text = self._texts.get(event.sample, "") + event.text
                self._texts[event.sample] = text[-MAX_TEXT:]
            case Done():
                self._outcome = event
                self._texts = {output.index: output.text for output in event.outputs}
            case Failed():
                self._outcome = event

    async def _view(self) -> LifeView:
        base = LifeView(
            job_id=str(self._job_id),
            lane=self._job_id.lane,
            enqueued_at=int(self._job_id.entry.partition("-")[0]) / 1000,
            words="",
            is_over=False,
            num_events=self._num_events,
            num_tokens=self._num_tokens,
            texts=dict(self._texts),
            outcome=self._outcome,
        )
        try:
            view = _with_status(base, await self._client.status(str(self._job_id)))
            if not view.is_over or isinstance(view.outcome, Done):
                return view
            letter = await find_letter(self._link, self._keys, self._job_id)
        except ServerError as error:
            return msgspec.structs.replace(base, words=f"the queue can't be reached: {error}")
        if letter is None:
            return view
        return msgspec.structs.replace(view, attempts=letter.attempts, letter=letter)


def _with_status(base: LifeView, status: JobStatus) -> LifeView:
    fields: dict[str, Any] = {"words": _words(status, base.lane), "stage": _STAGES[type(status)]}
    match status:
        case Leased():
            fields |= {
                "consumer": status.consumer,
                "deliveries": status.deliveries,
                "attempts": status.attempts,
            }
        case Released():
            fields |= {"deliveries": status.deliveries, "attempts": status.attempts}
        case Ended():
            fields |= {"is_over": True, "outcome": status.event, "stage": fields["words"]}
            if isinstance(status.event, Done):  # of which events may not have come, or have been missed
                fields["texts"] = {output.index: output.text for output in status.event.outputs}
        case Expired() | Lost() | Unknown():
            fields |= {"is_over": True, "is_known": not isinstance(status, Unknown)}
        case _:
            pass
    return msgspec.structs.replace(base, **fields)


def _words(status: JobStatus, lane: str) -> str:
    match status:
        case Ended(event=Done()):
            return "done"
        case Ended():
            return "failed"
        case _:
            return describe(status, lane, int(time.time() * 1000))


class Entry(Struct, frozen=True, kw_only=True):
    """What is outstanding of a job."""

    job_id: JobId
    job: Job | None
    """None where it can't be read."""


async def find_entry(link: Link, keys: Keys, job_id: JobId) -> Entry | None:
    """The job's entry, which is there until it ends; its id is then whole, whatever was asked for.

    Raises:
        ServerError: the server can't be asked.
    """
    found = await link.command("XRANGE", keys.jobs(job_id.lane), job_id.entry, job_id.entry)
    if not found:
        return None
    flat: list[bytes] = found[0][1]
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    nonce = fields.get(NONCE.encode(), b"").decode(errors="replace") or None
    if job_id.nonce not in (None, nonce):
        return None
    return Entry(job_id=JobId(job_id.lane, job_id.entry, nonce), job=read_job(fields.get(JOB.encode(), b"")))


def read_job(data: bytes) -> Job | None:
    """The job in an entry or a letter; None where it can't be read."""
    try:
        return decode_job(data)
    except InvalidJob:
        return None


async def find_letter(link: Link, keys: Keys, job_id: JobId) -> DeadLetter | None:
    """The job's dead letter, if it is one of the newest.

    Raises:
        ServerError: the server can't be asked.
    """
    letters = await read_latest_letters(link, keys, SEARCHED_LETTERS)
    return next((letter for letter in letters if letter.job_id == str(job_id)), None)


def prompt_of(job: Job) -> str:
    """What the job asks, for a person."""
    if job.prompt is not None:
        return job.prompt
    if job.messages is not None:
        return "\n\n".join(f"{one.role}: {_text(one.content)}" for one in job.messages)
    return f"{len(job.prompt_token_ids or [])} token ids"


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)
