"""Metrics and traces of a consumer, as far as its settings and the environment ask for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from consumer.engine_counts import Moment
from consumer.job_watch import JobWatch, Sink
from consumer.observer import NOBODY, Observer
from consumer.settings import Settings
from penstock.errors import InstallationError
from penstock.telemetry.tracing import Tracing, open_tracing

if TYPE_CHECKING:
    from consumer.metrics import ConsumerMetrics
    from penstock.telemetry.exposition import Exposition

log = logging.getLogger(__name__)


class Telemetry:
    """Made before anything runs; `observer` is for those who have something to tell."""

    def __init__(
        self, settings: Settings, name: str, moment: Callable[[], Moment], tracing: Tracing | None = None
    ) -> None:
        """Nothing is served before `start`.

        Args:
            name: the consumer's.
            moment: what it is at, whenever that is asked for.
            tracing: in the place of what the environment asks for.

        Raises:
            InstallationError: metrics are asked for, and their library is not there.
        """
        self._settings = settings
        self._metrics = _make_metrics(settings.model_name, moment) if settings.metrics_port else None
        self._exposition: Exposition | None = None
        self._tracing = tracing or open_tracing("penstock-consumer")
        sinks: list[Sink] = [] if self._metrics is None else [self._metrics]
        if self._tracing is not None:
            from consumer.spans import Spans

            sinks.append(Spans(self._tracing.tracer, name, settings.model_name))
        self.observer: Observer = JobWatch(sinks) if sinks else NOBODY

    async def start(self) -> None:
        """Serve metrics, where they are wanted.

        Raises:
            PenstockError: the address can't be had.
        """
        if self._metrics is None:
            return
        from prometheus_client.process_collector import ProcessCollector
        from prometheus_client.registry import CollectorRegistry

        from penstock.telemetry.exposition import Exposition

        registry = CollectorRegistry()
        registry.register(self._metrics)
        ProcessCollector(registry=registry)
        self._exposition = Exposition(registry)
        await self._exposition.start(self._settings.metrics_host, self._settings.metrics_port)
        log.info("metrics are served on %s:%d", self._settings.metrics_host, self._exposition.port)

    async def stop(self) -> None:
        """Serve no more, and export what spans are left."""
        if self._exposition is not None:
            await self._exposition.stop()
        if self._tracing is not None:
            await self._tracing.aclose()


def _make_metrics(model_name: str, moment: Callable[[], Moment]) -> ConsumerMetrics:
    try:
        from consumer.metrics import ConsumerMetrics
    except ModuleNotFoundError as error:
        raise InstallationError(
            f"metrics are asked for, and {error.name} is not installed: pip install 'penstock[metrics]'"
        ) from None
    return ConsumerMetrics(model_name, moment)
