"""Metrics over HTTP, from the event loop of a program that serves nothing else: GET /metrics, one reply.

It can't hold the program up: what is sent is made at most once a second, in a few milliseconds; a connection
has some seconds and one request of some kilobytes, and only a few are open at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from penstock.errors import PenstockError

_MAX_HEAD_BYTES: Final = 16 * 1024
_MAX_OPEN: Final = 16
_LIMIT_S: Final = 5.0
_FRESH_S: Final = 1.0

_PLAIN: Final = "text/plain; charset=utf-8"
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class Exposition:
    """Serves a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._server: asyncio.Server | None = None
        self._num_open = 0
        self._made: dict[str, tuple[float, str, bytes]] = {}

    @property
    def port(self) -> int:
        """Where it listens; 0 before `start`."""
        return self._server.sockets[0].getsockname()[1] if self._server is not None else 0

    async def start(self, host: str, port: int) -> None:
        """Listen. Port 0 takes a free one.

        Raises:
            PenstockError: the address can't be had.
        """
        try:
            self._server = await asyncio.start_server(self._answer, host, port, limit=_MAX_HEAD_BYTES)
        except OSError as error:
            raise PenstockError(
                f"metrics can't be served on {host}:{port}: {error.strerror or error}; "
                "--metrics-port names another port, 0 serves none"
            ) from None

    async def stop(self) -> None:
        """Listen no more. Connections end by themselves, within seconds."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_open += 1
        try:
            async with asyncio.timeout(_LIMIT_S):
                if self._num_open > _MAX_OPEN:
                    writer.write(_reply(503, _PLAIN, b"too many connections\n"))
                else:
                    writer.write(self._reply_to(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever it was has given up, or wants no metrics
        finally:
            self._num_open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _reply_to(self, head: bytes) -> bytes:
        first, *rest = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _reply(400, _PLAIN, b"this is no HTTP request\n")
        method, path = words[0], words[1].partition("?")[0]
        if path != "/metrics":
            return _reply(404, _PLAIN, b"there is /metrics alone\n")
        if method not in ("GET", "HEAD"):
            return _reply(405, _PLAIN, b"GET it\n", "Allow: GET, HEAD\r\n")
        accept = next((line[7:].strip() for line in rest if line.lower().startswith("accept:")), "")
        kind, text = self._text(accept)
        whole = _reply(200, kind, text)
        return whole if method == "GET" else whole[: len(whole) - len(text)]

    def _text(self, accept: str) -> tuple[str, bytes]:
        encode, kind = choose_encoder(accept)
        now = time.monotonic()
        at, _, text = self._made.get(kind, (now - _FRESH_S, kind, b""))
        if now - at >= _FRESH_S:
            text = encode(self._registry)
            self._made = {kind: (now, kind, text)}  # one form at a time: a client may name any
        return kind, text


def _reply(status: int, kind: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{more}Connection: close\r\n\r\n".encode() + body
