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

MOST_AHEAD: Final = 64
"""Events that are read for a client that is slow to take them."""

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
    """What is sent: one task reads events and another waits for the gateway's end, both for as long as this
    stream lasts, so that an event costs no task of its own."""
    feed: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_AHEAD)
    tasks = [
        asyncio.create_task(_read(gateway, job_id, after, feed)),
        asyncio.create_task(_end(gateway, feed)),
    ]
    keep_alive = _KeepAlive(feed)
    try:
        while (line := await feed.get()) is not None:
            yield line
    finally:
        keep_alive.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _KeepAlive:
    """Puts a comment into a feed that nothing else came into for a while."""

    def __init__(self, feed: asyncio.Queue[bytes | None]) -> None:
        self._feed = feed
        self._timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._tick)

    def stop(self) -> None:
        """No more of them."""
        self._timer.cancel()

    def _tick(self) -> None:
        if self._feed.empty():
            self._feed.put_nowait(b": still here\n\n")
        self._timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._tick)


async def _read(gateway: Gateway, job_id: str, after: str, feed: asyncio.Queue[bytes | None]) -> None:
    async with aclosing(_events(gateway, job_id, after)) as lines:
        async for line in lines:
            await feed.put(line)
    await feed.put(None)


async def _end(gateway: Gateway, feed: asyncio.Queue[bytes | None]) -> None:
    await gateway.closing.wait()
    await feed.put(b": the gateway is stopping; come back with Last-Event-ID\n\n")
    await feed.put(None)


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
