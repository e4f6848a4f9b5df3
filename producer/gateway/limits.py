"""What a request may take of the gateway before a route sees it: bytes and time of its headers and its body.

uvicorn itself bounds neither the headers' size nor how slowly they come: a connection that sends a byte now
and then would be kept for ever. The size of a body is bounded by the application.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from litestar.enums import RequestEncodingType
from litestar.handlers import HTTPRouteHandler
from litestar.params import BodyKwarg
from litestar.types import Receive, ReceiveMessage
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from producer.gateway.errors import TooLate, WrongType
from producer.gateway.settings import GatewaySettings

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def bounded_protocol(settings: GatewaySettings) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with bounds on the headers of every request."""
    longest, most = settings.header_timeout_s, settings.max_header_bytes

    class BoundedProtocol(HttpToolsProtocol):
        """Refuses headers that are too long or too slow."""

        _deadline: asyncio.TimerHandle | None = None
        _header_bytes = 0
        """Of what was received in the middle of headers."""
        _parsed_bytes = 0
        """Of the request's URL and the headers that are whole, whatever else came in one piece with them."""
        _in_headers = True  # of the first request, from the connection on
        _is_refused = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_clock()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_headers:
                self._header_bytes += len(data)
            super().data_received(data)
            if self._in_headers and self._header_bytes > most:
                self._refuse(_TOO_LARGE)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._parsed_bytes = 0
            if not self._in_headers:
                self._expect_headers()

        def on_url(self, url: bytes) -> None:
            self._parsed_bytes += len(url)
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._parsed_bytes += len(name) + len(value)
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_headers = False
            self._stop_clock()
            if self._parsed_bytes > most:
                self._refuse(_TOO_LARGE)
            if not self._is_refused:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._is_refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._is_refused:
                super().on_message_complete()

        def _expect_headers(self) -> None:
            self._in_headers, self._header_bytes = True, 0
            self._stop_clock()
            self._deadline = self.loop.call_later(longest, self._refuse, _TOO_SLOW)

        def _stop_clock(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _refuse(self, reply: bytes) -> None:
            self._is_refused = True
            if not self.transport.is_closing():
                self.transport.write(reply)
                self.transport.close()

    return BoundedProtocol


def bounded_receive(receive: Receive, silence_s: float) -> Receive:
    """`receive` that waits for each piece of the body no longer than so; not for what comes behind it."""
    is_whole = False

    async def receive_in_time() -> ReceiveMessage:
        nonlocal is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout(silence_s):
                message = await receive()
        except TimeoutError:
            raise TooLate(
                f"nothing of the request's body came for {silence_s:g} s", code="body_timeout"
            ) from None
        is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return receive_in_time


def check_media_type(handler: object, headers: dict[bytes, bytes]) -> None:
    """Refuse a body of a type that the route does not read.

    A web page may send text and forms to other sites without asking them; JSON it may not. A gateway that
    read JSON out of what says to be text could be used by any page that its owner opens.

    Raises:
        WrongType: it is of another one.
    """
    wanted = _media_type_of(handler)
    if wanted is None or headers.get(b"content-length", b"") == b"0":
        return
    if b"content-length" not in headers and b"transfer-encoding" not in headers:
        return
    given = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if given != wanted:
        raise WrongType(
            f"the body is {given or 'of no type'!r}; send `Content-Type: {wanted}`",
            code="unsupported_media_type",
        )


def _media_type_of(handler: object) -> str | None:
    field = handler.parsed_data_field if isinstance(handler, HTTPRouteHandler) else None
    if field is None:
        return None
    kwarg = field.kwarg_definition
    wanted = kwarg.media_type if isinstance(kwarg, BodyKwarg) else RequestEncodingType.JSON
    return wanted.value if isinstance(wanted, RequestEncodingType) else wanted
