"""One request at work: its jobs put in, waited for or told."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from litestar import Response
from msgspec import Struct

from penstock.errors import PenstockError
from penstock.messages import Job
from producer.gateway.caller import Caller
from producer.gateway.errors import BadRequest
from producer.gateway.gateway import CallersRequest, Gateway
from producer.gateway.openai.chat_chunks import ChatTranscript
from producer.gateway.openai.completion_chunks import CompletionTranscript
from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.endpoints import PROMPT_PARAMS, reply_of
from producer.gateway.openai.event_stream import EventStream
from producer.gateway.openai.form import ChatForm, CompletionForm, Form
from producer.gateway.openai.narration import Narration, Telling
from producer.gateway.openai.place import Place
from producer.gateway.openai.waiting import cancel_all, wait_for_all
from producer.gateway.queue.jobs import estimated_tokens


class Asked(Struct, frozen=True, kw_only=True):
    """A request that was read."""

    model: str
    jobs: list[Job]
    form: Form

    @property
    def prompt_param(self) -> str:
        """The request's name for its prompt."""
        return PROMPT_PARAMS[type(self.form)]


async def reply(asked: Asked, request: CallersRequest, gateway: Gateway) -> Response[Any]:
    """The whole reply, once all jobs have ended."""
    async with AsyncExitStack() as held:
        job_ids = await _submit(asked, request.auth, gateway, held)
        max_wait_s = gateway.settings.max_wait_s
        ends = await wait_for_all(gateway.client, job_ids, request.receive, max_wait_s, asked.prompt_param)
    body = reply_of(asked.form, ends, await gateway.served.known_models())
    return Response(body, headers={"x-request-id": job_ids[0]})


async def stream(
    asked: Asked, request: CallersRequest, gateway: Gateway, last_event_id: str | None
) -> EventStream:
    """The reply as it comes, from behind an event that was seen where one is named: then no job is put in."""
    resumed = None if last_event_id is None else Place.parse(last_event_id)
    async with AsyncExitStack() as held:
        if resumed is None:
            job_ids, reader = await _submit(asked, request.auth, gateway, held), ""
            handle = await gateway.handles.sign(job_ids[0], request.auth.tenant)
        elif len(asked.jobs) == 1:
            job_ids, handle = [await gateway.handles.open(resumed.handle, request.auth)], resumed.handle
            reader = await gateway.abandoned.take_up(job_ids[0])
        else:
            words = "a stream of several prompts can't be taken up again; send it without Last-Event-ID"
            raise BadRequest(words, param="Last-Event-ID", code="invalid_value")
        telling = Telling(
            job_ids=job_ids,
            handle=handle,
            prompt_param=asked.prompt_param,
            resumed=resumed,
            reader=reader,
        )
        narration = _narration(asked, telling, gateway)
        await narration.wait_for_first()
        narration.hold(held.pop_all())
    return EventStream(narration, gateway.closing, {"x-request-id": job_ids[0]})


async def _submit(asked: Asked, caller: Caller, gateway: Gateway, held: AsyncExitStack) -> list[str]:
    tokens = sum(estimated_tokens(job) for job in asked.jobs)
    await held.enter_async_context(gateway.meter.admit(caller, tokens))
    if len(asked.jobs) == 1:
        return [await gateway.client.submit(asked.jobs[0], caller.lane)]
    try:
        return await gateway.client.submit_many(asked.jobs, caller.lane)
    except PenstockError as error:  # the lane filled up half-way: nobody would read what is in
        await cancel_all(gateway.client, error.accepted)
        raise


def _narration(asked: Asked, telling: Telling, gateway: Gateway) -> Narration:
    form = asked.form
    if isinstance(form, CompletionForm):
        told = CompletionTranscript(form, telling.job_ids, asked.model)
        return Narration(gateway.client, gateway.abandoned, told, telling)
    assert isinstance(form, ChatForm), "embeddings are not streamed"
    transcript = ChatTranscript(form, telling.job_ids[0], asked.model, asked.jobs[0].sampling_params.n)

    async def prepare() -> None:
        if form.dialect is None:
            beat = (await gateway.served.known_models()).get(asked.model)
            transcript.learn(Dialect.of(beat) or Dialect())

    return Narration(gateway.client, gateway.abandoned, transcript, telling, prepare)
