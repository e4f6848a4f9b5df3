"""A job's events as server-sent events, from any of them on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final

import msgspec
from litestar import get
from litestar.params import FromPath, HeaderParameter
from litestar.response import Stream

from penstock.errors import JobLost, PenstockError
from penstock.follower import parse_entry_id
from penstock.messages import encode_event
from producer.gateway.errors import BadRequest
from producer.gateway.gateway import CallersRequest, Gateway, GatewayHere

KEEP_ALIVE_S: Final = 15.0
"""A comment is sent where nothing else is for so long, or proxies take the connection for dead."""

HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@get(
    "/v1/penstock/jobs/{job_id:str}/events",
    media_type="text/event-stream",
    summary="Follow a job",
    tags=["jobs"],
)
async def job_events(
    request: CallersRequest,
    gateway: GatewayHere,
    job_id: FromPath[str],
    last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID", max_length=64)] = None,
) -> Stream:
    """The job's events from behind Last-Event-ID on, each with its id, up to the terminal one.

    `tokens` events come only of jobs with `stream`. A stream that ends without a terminal event, as where the
    gateway is restarted, is to be opened again with the id of the last event that was seen.
    """
    after = last_event_id or "0-0"
    try:
        parse_entry_id(after)
    except ValueError as error:
        raise BadRequest(str(error), param="Last-Event-ID", code="invalid_value") from None
    own = await gateway.handles.open(job_id, request.auth)
    return Stream(_lines(gateway, own, after), media_type="text/event-stream", headers=HEADERS)


async def _lines(gateway: Gateway, job_id: str, after: str) -> AsyncGenerator[bytes]:
    async with aclosing(_events(gateway, job_id, after)) as events:
        ended = asyncio.ensure_future(gateway.closing.wait())
        following = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait(
                    (following, ended), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
                )
                if following in done:
                    line = following.result()
                    if line is None:
                        return
                    yield line
                    following = asyncio.ensure_future(anext(events, None))
                elif ended in done:
                    yield b": the gateway is stopping; come back with Last-Event-ID\n\n"
                    return
                else:
                    yield b": still here\n\n"
        finally:
            for task in (following, ended):
                task.cancel()
            await asyncio.gather(following, ended, return_exceptions=True)


async def _events(gateway: Gateway, job_id: str, after: str) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(gateway.client.stream(job_id, after)) as events:
            async for event_id, event in events:
                kind = event.__struct_config__.tag
                yield f"id: {event_id}\nevent: {kind}\ndata: ".encode() + encode_event(event) + b"\n\n"
    except JobLost as error:
        yield _error_line("job_lost", error)
    except PenstockError as error:
        yield _error_line("queue_unavailable", error)


def _error_line(code: str, error: Exception) -> bytes:
    body = msgspec.json.encode(
        {"error": {"message": str(error), "type": "server_error", "param": None, "code": code}}
    )
    return b"event: error\ndata: " + body + b"\n\n"


ROUTES = (job_events,)
