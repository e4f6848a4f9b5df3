"""Traces by OpenTelemetry, where its standard environment variables ask for them.

Nothing of OpenTelemetry is imported before that. Spans go out in the background, in batches, by OTLP over
HTTP; whether a job is traced is said by the `sampled` flag of the traceparent that it carries, and where it
carries none by OTEL_TRACES_SAMPLER.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

_LAST_EXPORT_S: Final = 3.0
_EXPORTERS: Final = ("otlp", "console")


class Tracing:
    """A tracer whose spans are exported in the background."""

    def __init__(self, service: str, exporter: SpanExporter, *, at_once: bool = False) -> None:
        """Export what the tracer makes.

        Args:
            service: `service.name`, where OTEL_SERVICE_NAME says no other.
            at_once: without batches, for tests.
        """
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = Resource.create({} if named else {"service.name": service})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter)
        )
        self.tracer: Tracer = self._provider.get_tracer("penstock")

    async def aclose(self) -> None:
        """Export what is left, for some seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_EXPORT_S):
                await asyncio.to_thread(self._provider.shutdown)


def open_tracing(service: str) -> Tracing | None:
    """As the environment asks for it; None where it does not.

    Raises:
        PenstockError: it asks for an exporter that there is none of.
    """
    kind = exporter_wanted(os.environ)
    if kind is None:
        return None
    try:
        return Tracing(service, _exporter(kind))
    except ImportError as error:
        log.warning(
            "traces are asked for, and %s is not installed: pip install 'penstock[tracing]'", error.name
        )
        return None


def exporter_wanted(environ: Mapping[str, str]) -> str | None:
    """`otlp`, `console`, or None.

    Raises:
        PenstockError: some other.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if named and named != "none":
        if named not in _EXPORTERS:
            raise PenstockError(f"OTEL_TRACES_EXPORTER is {named!r}; it may be otlp, console or none")
        return named
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return "otlp" if not named and any(environ.get(name) for name in endpoints) else None


def context_of(traceparent: str | None) -> Context:
    """The caller's span as OpenTelemetry's context; an empty one where there is none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())


def current_traceparent() -> str | None:
    """The current span, as a job carries it."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def _exporter(kind: str) -> SpanExporter:
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf") != "http/protobuf":
        log.warning(
            "traces go out by OTLP over HTTP (http/protobuf), whatever OTEL_EXPORTER_OTLP_PROTOCOL is"
        )
    return OTLPSpanExporter()
