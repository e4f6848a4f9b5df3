"""Requests in numbers: how many, how long, how much, by route."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.registry import CollectorRegistry

UNMATCHED: Final = "unmatched"
"""The route of requests that have none: their paths are anybody's."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS: Final = (
    0.001,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
    600,
    3600,
)


class HttpMetrics:
    """One request is told of when it begins and when it has ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "penstock_gateway_requests",
            "Requests that were answered, or left by their clients.",
            ["route", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "penstock_gateway_request_seconds",
            "From a request's headers to the end of its answer.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "penstock_gateway_first_event_seconds",
            "From a request's headers to the first event of its stream, as the client sees it.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._open = Gauge("penstock_gateway_open_requests", "Requests under way.", registry=registry)
        self._streams = Gauge("penstock_gateway_open_streams", "Event streams under way.", registry=registry)
        self._received = Counter(
            "penstock_gateway_received_bytes", "Bytes of requests' bodies.", registry=registry
        )
        self._sent = Counter("penstock_gateway_sent_bytes", "Bytes of answers' bodies.", registry=registry)

    def began(self) -> None:
        """A request has come."""
        self._open.inc()

    def stream_began(self) -> None:
        """Its answer is a stream of events."""
        self._streams.inc()

    def first_event(self, route: str, seconds: float) -> None:
        """The first of them was sent."""
        self._first.labels(route).observe(seconds)

    def ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """It is answered. Status 499: its client has gone before."""
        kind = method if method in _METHODS else "other"
        self._open.dec()
        self._requests.labels(route, kind, str(status)).inc()
        self._seconds.labels(route, kind).observe(seconds)

    def moved(self, received: int, sent: int, *, was_stream: bool) -> None:
        """So many bytes went in and out for it."""
        self._received.inc(received)
        self._sent.inc(sent)
        if was_stream:
            self._streams.dec()
