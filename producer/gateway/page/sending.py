"""Server-sent events whose data is HTML."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from litestar.response import Stream

from penstock.errors import PenstockError
from producer.gateway.cookie import key_in_cookie
from producer.gateway.gateway import CallersRequest, Gateway
from producer.gateway.page.rendering import HEADERS

KEEP_ALIVE_S: Final = 15.0
WELCOME_S: Final = 5.0
"""How long a key that was revoked may go on seeing what it sees."""

log = logging.getLogger(__name__)


def event(name: str, html: str) -> bytes:
    """One event; every line of its data has a field of its own."""
    lines = "".join(f"data: {line}\n" for line in html.replace("\r", "&#13;").split("\n"))
    return f"event: {name}\n{lines}\n".encode()


def sent(request: CallersRequest, gateway: Gateway, events: AsyncGenerator[bytes]) -> Stream:
    """A reply of them, up to their end, the gateway's, or that of the key that the request showed."""
    headers = {**HEADERS, "X-Accel-Buffering": "no"}
    return Stream(
        _lines(gateway, _while_welcome(request, gateway, events)),
        media_type="text/event-stream",
        headers=headers,
    )


async def _while_welcome(
    request: CallersRequest, gateway: Gateway, events: AsyncGenerator[bytes]
) -> AsyncGenerator[bytes]:
    looked_at = time.monotonic()
    async with aclosing(events):
        async for line in events:
            if time.monotonic() - looked_at > WELCOME_S:
                try:
                    await gateway.door.enter(request, key_in_cookie(request))
                except PenstockError:
                    return
                looked_at = time.monotonic()
            yield line


async def _lines(gateway: Gateway, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    feed: asyncio.Queue[bytes | None] = asyncio.Queue(1)
    tasks = [asyncio.create_task(_read(events, feed)), asyncio.create_task(_end(gateway, feed))]
    try:
        while True:
            try:
                line = await asyncio.wait_for(feed.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if line is None:
                return
            yield line
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(events: AsyncGenerator[bytes], feed: asyncio.Queue[bytes | None]) -> None:
    try:
        async with aclosing(events):
            async for line in events:
                await feed.put(line)
    except Exception:
        log.exception("a stream of the page ended early")
    await feed.put(None)


async def _end(gateway: Gateway, feed: asyncio.Queue[bytes | None]) -> None:
    await gateway.closing.wait()
    await feed.put(None)
