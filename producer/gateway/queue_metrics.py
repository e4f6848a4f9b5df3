"""The queue in numbers, for Prometheus: see `QueueDepths`.

Where the server does not answer, `penstock_queue_up` is 0 and the rest is left out.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from penstock.errors import ServerError
from producer.gateway.depths import Depths, QueueDepths


class QueueMetrics:
    """Asks, and collects."""

    def __init__(self, depths: QueueDepths) -> None:
        self._asked = depths
        self._depths: Depths | None = None

    async def refresh(self) -> None:
        """Ask; what can't be had shows when it is collected."""
        self._depths = None
        with contextlib.suppress(ServerError):
            self._depths = await self._asked.read()

    def collect(self) -> Iterator[Metric]:
        """All families, for a registry."""
        depths = self._depths
        yield GaugeMetricFamily(
            "penstock_queue_up", "1 where the server could be asked.", value=int(depths is not None)
        )
        if depths is None:
            return
        yield _by_lane(
            depths, "penstock_lane_queued_jobs", "Jobs that wait for their first consumer.", "queued"
        )
        yield _by_lane(depths, "penstock_lane_leased_jobs", "Jobs that a consumer has or had.", "leased")
        words = "How long the oldest queued job has waited."
        yield _by_lane(depths, "penstock_lane_oldest_wait_seconds", words, "oldest_s")
        yield GaugeMetricFamily("penstock_dead_letters", "Dead letters that are kept.", value=depths.dead)
        yield _alive(depths)


def _by_lane(depths: Depths, name: str, words: str, field: str) -> Metric:
    family = GaugeMetricFamily(name, words, labels=["lane"])
    for lane in depths.lanes:
        family.add_metric([lane.name], getattr(lane, field))
    return family


def _alive(depths: Depths) -> Metric:
    family = GaugeMetricFamily(
        "penstock_consumers", "Consumers that are alive.", labels=["model_name", "ready"]
    )
    counts = Counter((beat.model, str(beat.phase == "ready").lower()) for beat in depths.consumers.values())
    for labels, count in sorted(counts.items()):
        family.add_metric(list(labels), count)
    return family
