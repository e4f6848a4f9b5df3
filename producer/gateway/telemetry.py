"""Metrics, traces and the access log of one gateway."""

from __future__ import annotations

from litestar import Litestar, Response, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromHeader
from prometheus_client import disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from penstock.telemetry.tracing import Tracing, open_tracing
from producer.gateway.access import OPERATOR, PUBLIC
from producer.gateway.gateway import Gateway
from producer.gateway.http_metrics import HttpMetrics
from producer.gateway.queue_metrics import QueueMetrics
from producer.gateway.tracing import NoTracing, SpanTracing
from producer.gateway.watched import Watched


class GatewayTelemetry:
    """Made with the application; it has numbers of the queue while a gateway is open."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        """Traces as the environment asks for them, or by `tracing`."""
        self._exporting = tracing or open_tracing("penstock-gateway")
        self.tracing = NoTracing() if self._exporting is None else SpanTracing(self._exporting.tracer)
        disable_created_metrics()  # twice the series, for times that nobody asks for
        self._registry = CollectorRegistry()
        self._http = HttpMetrics(self._registry)
        self._queue: QueueMetrics | None = None
        ProcessCollector(registry=self._registry)

    def open(self, gateway: Gateway) -> None:
        """The queue can be asked."""
        self._queue = QueueMetrics(gateway.depths)
        self._registry.register(self._queue)

    async def aclose(self) -> None:
        """It can't any more; what spans are left are exported."""
        if self._queue is not None:
            self._registry.unregister(self._queue)
            self._queue = None
        if self._exporting is not None:
            await self._exporting.aclose()

    def watch(self, app: Litestar) -> Watched:
        """The application, watched."""
        return Watched(app, self._http, self.tracing)

    async def expose(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their media type."""
        if self._queue is not None:
            await self._queue.refresh()
        encode, kind = choose_encoder(accept)
        return encode(self._registry), kind


def metrics_route(*, public: bool) -> HTTPRouteHandler:
    """GET /metrics: for everybody, or for operators."""

    @get("/metrics", opt=PUBLIC if public else OPERATOR, include_in_schema=False)
    async def metrics(state: State, accept: FromHeader[str] = "") -> Response[bytes]:
        """Prometheus's."""
        text, kind = await state.telemetry.expose(accept)
        return Response(text, media_type=kind)

    return metrics
