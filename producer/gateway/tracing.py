"""Traces of requests: a caller's traceparent goes on in the job, with or without spans of ours."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from penstock.job import TRACEPARENT_PATTERN, Job
from producer.gateway.watched import Exchange

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_given: ContextVar[str | None] = ContextVar("traceparent", default=None)
_PATTERN: Final = re.compile(TRACEPARENT_PATTERN)


class NoTracing:
    """No spans: a job carries its request's traceparent as it came."""

    @contextmanager
    def request(self, exchange: Exchange) -> Generator[None]:
        """See `RequestTracing`."""
        token = _given.set(_traceparent(exchange))
        try:
            yield
        finally:
            _given.reset(token)

    @contextmanager
    def enqueue(self, job: Job) -> Generator[Job]:
        """The job to put in: see `penstock.enqueue.EnqueueHook`."""
        given = _given.get()
        yield job if given is None or job.traceparent is not None else replace(job, traceparent=given)


class SpanTracing:
    """A span for each request, and one for each job that it puts in."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def request(self, exchange: Exchange) -> Generator[None]:
        """See `RequestTracing`."""
        if exchange.is_quiet:
            yield
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        from penstock.telemetry.tracing import context_of

        span = self._tracer.start_as_current_span(
            exchange.method,
            context=context_of(_traceparent(exchange)),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": exchange.method, "url.scheme": exchange.scope["scheme"]},
        )
        with span as current:
            try:
                yield
            finally:
                current.update_name(f"{exchange.method} {exchange.route}")
                current.set_attributes(
                    {
                        "http.route": exchange.route,
                        "http.response.status_code": exchange.status,
                        "penstock.tenant": exchange.tenant,
                        "penstock.request.id": exchange.request_id,
                    }
                )
                if exchange.status >= 500:
                    current.set_status(Status(StatusCode.ERROR))

    @contextmanager
    def enqueue(self, job: Job) -> Generator[Job]:
        """The job to put in: see `penstock.enqueue.EnqueueHook`."""
        from opentelemetry.trace import SpanKind, get_current_span

        from penstock.telemetry.tracing import context_of, current_traceparent

        inside = get_current_span().get_span_context().is_valid
        if not inside and job.traceparent is None:
            yield job  # of a batch, say: its consumer begins a trace of its own
            return
        attributes = {"messaging.system": "penstock", "messaging.operation.type": "send"}
        context = None if job.traceparent is None else context_of(job.traceparent)
        with self._tracer.start_as_current_span(
            "enqueue", context=context, kind=SpanKind.PRODUCER, attributes=attributes
        ):
            yield replace(job, traceparent=current_traceparent() or job.traceparent)


def _traceparent(exchange: Exchange) -> str | None:
    given = exchange.header(b"traceparent")
    return given if _PATTERN.search(given) else None
