"""A reply of server-sent events that watches its reader."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any, Final

from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Send

from producer.gateway.errors import Unavailable
from producer.gateway.openai.connection import gone
from producer.gateway.openai.narration import Narration, error_frame

KEEP_ALIVE_S: Final = 15.0
"""A comment is sent where nothing else is for so long, or proxies take the connection for dead."""

HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(Response[None]):
    """Sends a narration's frames, each when the one before it was taken: a slow reader fills no memory."""

    def __init__(self, narration: Narration, closing: asyncio.Event, headers: dict[str, str]) -> None:
        """Send until the end, or until `closing` where the reader can come back."""
        super().__init__(content=None, media_type="text/event-stream", headers={**HEADERS, **headers})
        self._narration = narration
        self._closing = closing

    def to_asgi_response(self, app: Any, request: Any, **options: Any) -> ASGIResponse:
        """See `Response.to_asgi_response`."""
        headers: dict[str, Any] = {**(options.get("headers") or {}), **self.headers}
        cookies: Iterable[Any] = options.get("cookies") or ()
        sending = _Sending(
            headers=headers,
            cookies=cookies,
            media_type="text/event-stream",
            status_code=200,
        )
        sending.narration, sending.closing = self._narration, self._closing
        return sending


class _Sending(ASGIResponse):
    """The response as ASGI sees it."""

    _should_set_content_length = False
    narration: Narration
    closing: asyncio.Event

    async def send_body(self, send: Send, receive: Receive) -> None:
        """Write, and watch whether anybody reads."""
        writer = _Writer(send)
        writing = asyncio.ensure_future(writer.write(self.narration))
        leaving = asyncio.ensure_future(gone(receive))
        closing = asyncio.ensure_future(self.closing.wait())
        watched = {writing, leaving, closing} if self.narration.telling.can_resume else {writing, leaving}
        left = False
        try:
            while not writing.done() and not left:
                done, _ = await asyncio.wait(
                    watched, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
                )
                left = leaving in done and not writing.done()
                if writing in done:
                    writing.result()
                elif closing in done and not left:
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
                    await writer.stop()
                elif not done:
                    await writer.keep_alive()
        finally:
            for task in (writing, leaving, closing):
                task.cancel()
            await asyncio.gather(writing, leaving, closing, return_exceptions=True)
            await self.narration.close()
            if left:
                self.narration.leave()
            else:
                await self.narration.let_go()
        if not left:
            await writer.end()


class _Writer:
    """Sends frames, and comments in between where there are none."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._wrote = True
        self._is_writing = False

    async def write(self, narration: Narration) -> None:
        """All frames."""
        async with aclosing(narration.frames()) as frames:
            async for frame in frames:
                self._wrote = self._is_writing = True
                await self._body(frame, more=True)
                self._is_writing = False

    async def keep_alive(self) -> None:
        """A comment, if nothing was sent since this was called last."""
        if not self._wrote and not self._is_writing:
            await self._body(b": still here\n\n", more=True)
        self._wrote = False

    async def stop(self) -> None:
        """Tell a reader that the rest is to be had elsewhere."""
        words = "the gateway is stopping; send the request again with Last-Event-ID"
        await self._body(error_frame(Unavailable(words, code="gateway_stopping")), more=True)

    async def end(self) -> None:
        """There is no more."""
        await self._body(b"", more=False)

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
