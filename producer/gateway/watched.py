"""The application as it is watched: each request counted, logged in one line, and traced where that is on."""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from litestar import Litestar
from litestar.types import Message, Receive, Scope, Send

from producer.gateway.http_metrics import UNMATCHED, HttpMetrics

log = logging.getLogger("gateway.access")

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_JOB_ID: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}\.[0-9]{1,20}-[0-9]{1,20}(\.[0-9a-f]{16})?")
"""A handle is that and a tag."""
_JOBS: Final = "/v1/penstock/jobs/"
_QUIET: Final = ("/health", "/health/live", "/health/ready", "/metrics")
"""Asked by machines all the time: logged at level DEBUG, and not traced."""
_GONE: Final = 499


class RequestTracing(Protocol):
    """Draws requests; see `producer.gateway.tracing`."""

    def request(self, exchange: Exchange) -> AbstractContextManager[None]:
        """A request, as long as the context lasts."""
        ...


class Exchange:
    """One request and its answer, as far as they are known."""

    def __init__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.started_at = time.monotonic()
        self.status = 0
        self.received = 0
        self.sent = 0
        self.is_stream = False
        self.first_event_at: float | None = None
        self.request_id = ""
        self.location = ""
        self._receive = receive
        self._send = send

    @property
    def method(self) -> str:
        """As it was sent."""
        return self.scope["method"]

    @property
    def is_quiet(self) -> bool:
        """Whether only a machine's probe."""
        return self.scope["path"] in _QUIET

    @property
    def route(self) -> str:
        """Template of the path, once it is found: no ids, and no more of them than there are routes."""
        return self.scope.get("path_template") or UNMATCHED

    @property
    def tenant(self) -> str:
        """Whose it is; empty where nobody was let in."""
        return getattr(self.scope.get("auth"), "tenant", "")

    @property
    def job(self) -> str:
        """Id of the job that it is about, as the consumer knows it; empty where it is about none."""
        named = str(self.scope.get("path_params", {}).get("job_id", ""))
        made = self.location.removeprefix(_JOBS) if self.location.startswith(_JOBS) else ""
        found = _JOB_ID.match(named or made or self.request_id)
        return found[0] if found is not None else ""

    def header(self, name: bytes) -> str:
        """Of the request; empty where it has none."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), "")

    async def receive(self) -> Any:
        """See ASGI."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self.sent += len(body)
            if self.is_stream and self.first_event_at is None and body and not body.startswith(b":"):
                self.first_event_at = time.monotonic()
        await self._send(message)

    def _start(self, message: Any) -> None:
        self.status = message["status"]
        headers = message["headers"] = list(message.get("headers", []))
        found = {key.lower(): value for key, value in headers}
        self.is_stream = found.get(b"content-type", b"").startswith(b"text/event-stream")
        self.location = found.get(b"location", b"").decode("latin-1")
        self.request_id = found.get(b"x-request-id", b"").decode("latin-1")
        if not self.request_id:
            given = self.header(b"x-request-id")
            self.request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
            headers.append((b"x-request-id", self.request_id.encode()))


class Watched:
    """An ASGI application around the gateway's."""

    def __init__(self, app: Litestar, metrics: HttpMetrics, tracing: RequestTracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":  # pyright: ignore[reportUnnecessaryComparison] - the lifespan's
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD" and scope["path"] in _QUIET:
            # What balancers probe with. uvicorn, which has the other scope, leaves the body out.
            scope = {**scope, "method": "GET"}  # pyright: ignore[reportAssignmentType] - a copy of the same type
        exchange = Exchange(scope, receive, send)
        self._metrics.began()
        counted = _StreamCounter(exchange, self._metrics)
        try:
            with self._tracing.request(exchange):
                await self._app(scope, exchange.receive, counted.send)
        finally:
            self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.started_at
        route, status = exchange.route, exchange.status or _GONE
        self._metrics.ended(route, exchange.method, status, seconds)
        self._metrics.moved(exchange.received, exchange.sent, was_stream=exchange.is_stream)
        fields = {
            "method": exchange.method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "tenant": exchange.tenant,
            "request_id": exchange.request_id,
            "job": exchange.job,
        }
        level = logging.DEBUG if exchange.is_quiet else logging.INFO
        words = (
            "%(method)s %(route)s %(status)d %(ms).1f ms tenant=%(tenant)s request=%(request_id)s job=%(job)s"
        )
        log.log(level, words, fields, extra=fields)


class _StreamCounter:
    """Tells of an answer that is a stream while it is one."""

    def __init__(self, exchange: Exchange, metrics: HttpMetrics) -> None:
        self._exchange = exchange
        self._metrics = metrics
        self._told = False

    async def send(self, message: Message) -> None:
        """See ASGI."""
        exchange, was_stream = self._exchange, self._exchange.is_stream
        await exchange.send(message)
        if exchange.is_stream and not was_stream:
            self._metrics.stream_began()
        if exchange.first_event_at is not None and not self._told:
            self._told = True
            self._metrics.first_event(exchange.route, exchange.first_event_at - exchange.started_at)
