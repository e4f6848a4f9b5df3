"""A request's jobs, told as they run: frames of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Protocol

import msgspec
from msgspec import Struct

from penstock.client import Client
from penstock.errors import PenstockError
from penstock.messages import Done, Event, Failed, Tokens
from producer.gateway.errors import ApiError, BadRequest
from producer.gateway.openai.abandoned import Abandoned
from producer.gateway.openai.failures import error_of
from producer.gateway.openai.place import BEGIN, WRONG_REQUEST, Place
from producer.gateway.openai.waiting import cancel_all
from producer.gateway.replies import api_error_of

FIRST_EVENT_S = 2.0
"""How long the head of a reply is held back for the first event: what fails by then has its own status."""

DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


class Transcript(Protocol):
    """Turns events into messages. Made anew, and given the same events, it gives the same messages."""

    @property
    def n(self) -> int:
        """Samples of a job."""
        ...

    def begin(self) -> Sequence[Struct]:
        """What comes before the first event."""
        ...

    def take(self, job: int, event: Tokens) -> Sequence[Struct]:
        """A stretch of a sample of a job, by the job's place in the request."""
        ...

    def end(self, job: int, done: Done) -> Sequence[Struct]:
        """A job's end."""
        ...


class Telling(Struct, frozen=True, kw_only=True):
    """Which jobs are told, and to whom."""

    job_ids: list[str]
    handle: str
    """The first job's name to its tenant."""
    prompt_param: str
    """The request's name for the prompt."""
    resumed: Place | None = None
    """Where the reader goes on; None for one that has nothing yet."""
    reader: str = ""
    """Its sign, see `Abandoned`."""

    @property
    def can_resume(self) -> bool:
        """Whether there are event ids: a place among several jobs' events would be one for each."""
        return len(self.job_ids) == 1


class Narration:
    """Frames from the events of a request's jobs; what ends with them is held until then."""

    def __init__(
        self,
        client: Client,
        abandoned: Abandoned,
        transcript: Transcript,
        telling: Telling,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Tell these jobs; `prepare` is for the transcript, before its first event."""
        self.telling = telling
        self._client = client
        self._abandoned = abandoned
        self._transcript = transcript
        self._held = AsyncExitStack()
        self._prepare = prepare
        self._events = self._merged() if len(telling.job_ids) > 1 else self._single()
        self._next: asyncio.Future[tuple[int, str, Event] | None] | None = None

    async def wait_for_first(self) -> None:
        """Give the first event a moment to come.

        Raises:
            ApiError: the job failed before it said anything.
        """
        self._next = asyncio.ensure_future(anext(self._events, None))
        await asyncio.wait((self._next,), timeout=FIRST_EVENT_S)
        if not self._next.done():
            return
        try:
            first = self._next.result()
        except PenstockError as error:
            await self.close()
            await self._cancel_others()
            raise error from None
        if first is not None and isinstance(first[2], Failed) and self.telling.resumed is None:
            await self.close()
            await self._cancel_others()
            raise error_of(first[2].error, self.telling.prompt_param)

    async def frames(self) -> AsyncGenerator[bytes]:
        """What to send, up to the end of the stream."""
        try:
            if frame := self._frame(BEGIN, self._transcript.begin()):
                yield frame
            while (found := await self._following()) is not None:
                job, event_id, event = found
                if isinstance(event, Failed):
                    await self._cancel_others()
                    yield error_frame(error_of(event.error, self.telling.prompt_param))
                    return
                self._check_sample(event)
                done = isinstance(event, Done)
                messages = self._transcript.end(job, event) if done else self._transcript.take(job, event)
                if frame := self._frame(event_id, messages):
                    yield frame
            yield DONE
        except PenstockError as error:
            await self._cancel_others()
            yield error_frame(api_error_of(error) or ApiError(str(error)))

    def hold(self, held: AsyncExitStack) -> None:
        """Keep this open until the jobs have ended."""
        self._held = held

    def leave(self) -> None:
        """The reader went away before the end."""
        self._abandoned.leave(
            self.telling.job_ids, self.telling.reader, self._held, can_resume=self.telling.can_resume
        )

    async def close(self) -> None:
        """Stop following. What is held stays so until `let_go`, or behind `leave` until the jobs end."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._events.aclose()

    async def let_go(self) -> None:
        """The jobs have ended, or are nobody's concern here any more."""
        await self._held.aclose()

    def _check_sample(self, event: Tokens | Done) -> None:
        samples = len(event.outputs) if isinstance(event, Done) else event.sample + 1
        if samples > self._transcript.n:
            raise BadRequest(WRONG_REQUEST, param="Last-Event-ID", code="invalid_value")

    async def _cancel_others(self) -> None:
        """One of several jobs failed or is lost, and with it the request: nobody will read the others."""
        if len(self.telling.job_ids) > 1:
            await cancel_all(self._client, self.telling.job_ids)

    async def _following(self) -> tuple[int, str, Event] | None:
        if self._next is None:
            return await anext(self._events, None)
        first = await self._next
        self._next = None
        if self._prepare is not None:
            await self._prepare()
        return first

    async def _single(self) -> AsyncGenerator[tuple[int, str, Event]]:
        async with aclosing(self._client.stream(self.telling.job_ids[0])) as events:
            async for event_id, event in events:
                yield 0, event_id, event

    async def _merged(self) -> AsyncGenerator[tuple[int, str, Event]]:
        """The events of all jobs as they come, each job's in order."""
        streams = [self._client.stream(job_id) for job_id in self.telling.job_ids]
        waiting = {asyncio.ensure_future(anext(stream, None)): job for job, stream in enumerate(streams)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda one: waiting[one]):
                    job, found = waiting.pop(task), task.result()
                    if found is not None:
                        yield job, *found
                        waiting[asyncio.ensure_future(anext(streams[job], None))] = job
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for stream in streams:
                await stream.aclose()

    def _frame(self, event_id: str, messages: Sequence[Struct]) -> bytes:
        """An event's messages, but for those that a reader has who comes back."""
        telling = self.telling
        skipped = 0 if telling.resumed is None else telling.resumed.num_told(event_id, len(messages))
        lines: list[bytes] = []
        for number, message in enumerate(messages[skipped:], skipped + 1):
            told = None if number == len(messages) else number
            if telling.can_resume:
                lines.append(f"id: {Place(telling.handle, event_id, told)}\n".encode())
            lines += (b"data: ", _encoder.encode(message), b"\n\n")
        return b"".join(lines)


def error_frame(error: ApiError) -> bytes:
    """An error in the middle of a stream, which ends with it."""
    return b"data: " + _encoder.encode(error.reply) + b"\n\n"
