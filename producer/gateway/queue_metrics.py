"""The queue in numbers: what waits and for how long, what is leased, what is dead, who is alive.

The server is asked when somebody scrapes, at most once a second, and for no longer than two; where it does
not answer in time, `penstock_queue_up` is 0 and the rest is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Struct
from prometheus_client.core import GaugeMetricFamily, Metric

from penstock.errors import ServerError
from penstock.keys import DEFAULT_LANE, GROUP, WHOLE_QUEUE, Keys
from penstock.link import Link
from penstock.presence import server_time_ms
from producer.gateway.served import Served

FRESH_S: Final = 1.0
LIMIT_S: Final = 2.0
MAX_LANES: Final = 200
OTHER_LANES: Final = "_other"
"""Takes the lanes beyond `MAX_LANES`, added up: no lane's name begins so."""
_AT_ONCE: Final = 8


class LaneDepth(Struct, frozen=True, kw_only=True):
    """What a lane holds."""

    name: str
    queued: int = 0
    leased: int = 0
    oldest_s: float = 0.0
    """How long the oldest job that waits for its first consumer has waited."""


class Depths(Struct, frozen=True, kw_only=True):
    """The queue at one moment."""

    lanes: list[LaneDepth]
    dead: int
    consumers: dict[tuple[str, str], int]
    """How many are alive, by model and by whether they are ready."""


class QueueMetrics:
    """Asks, and collects for Prometheus."""

    def __init__(self, link: Link, keys: Keys, served: Served) -> None:
        self._link = link
        self._keys = keys
        self._served = served
        self._asking = asyncio.Lock()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._asked_at = -FRESH_S
        self._depths: Depths | None = None

    async def refresh(self) -> None:
        """Ask, unless that was done within the last second; what can't be had shows when it is collected."""
        async with self._asking:
            if time.monotonic() - self._asked_at < FRESH_S:
                return
            self._depths = None
            with contextlib.suppress(ServerError, TimeoutError):
                async with asyncio.timeout(LIMIT_S):
                    self._depths = await self._ask()
            self._asked_at = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        """All families, for a registry."""
        depths = self._depths
        yield GaugeMetricFamily(
            "penstock_queue_up", "1 where the server could be asked.", value=int(depths is not None)
        )
        if depths is None:
            return
        yield self._by_lane("penstock_lane_queued_jobs", "Jobs that wait for their first consumer.", "queued")
        yield self._by_lane("penstock_lane_leased_jobs", "Jobs that a consumer has or had.", "leased")
        yield self._by_lane(
            "penstock_lane_oldest_wait_seconds", "How long the oldest queued job has waited.", "oldest_s"
        )
        yield GaugeMetricFamily("penstock_dead_letters", "Dead letters that are kept.", value=depths.dead)
        alive = GaugeMetricFamily(
            "penstock_consumers", "Consumers that are alive.", labels=["model_name", "ready"]
        )
        for labels, count in sorted(depths.consumers.items()):
            alive.add_metric(list(labels), count)
        yield alive

    def _by_lane(self, name: str, words: str, field: str) -> Metric:
        assert self._depths is not None
        family = GaugeMetricFamily(name, words, labels=["lane"])
        for lane in self._depths.lanes:
            family.add_metric([lane.name], getattr(lane, field))
        return family

    async def _ask(self) -> Depths:
        names, dead, now_ms, consumers = await asyncio.gather(
            self._link.command("HKEYS", self._keys.lanes),
            self._link.command("XLEN", self._keys.dead),
            server_time_ms(self._link),
            self._served.consumers(),
        )
        lanes = sorted({DEFAULT_LANE} | {name.decode(errors="replace") for name in names} - {WHOLE_QUEUE})
        depths = await asyncio.gather(*(self._depth(lane, now_ms) for lane in lanes))
        alive = Counter((beat.model, str(beat.phase == "ready").lower()) for beat in consumers.values())
        return Depths(lanes=bounded(depths), dead=int(dead), consumers=dict(alive))

    async def _depth(self, lane: str, now_ms: int) -> LaneDepth:
        stream = self._keys.jobs(lane)
        async with self._turns:
            length = int(await self._link.command("XLEN", stream))
            if not length:
                return LaneDepth(name=lane)
            groups: list[list[Any]] = await self._link.command("XINFO", "GROUPS", stream)
            found = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in groups]
            ours = next((info for info in found if info[b"name"] == GROUP.encode()), None)
            leased = int(ours[b"pending"]) if ours is not None else 0
            delivered = ours[b"last-delivered-id"].decode() if ours is not None else "0-0"
            oldest = await self._link.command("XRANGE", stream, f"({delivered}", "+", "COUNT", 1)
        oldest_ms = int(oldest[0][0].partition(b"-")[0]) if oldest else now_ms
        queued, oldest_s = max(length - leased, 0), max(now_ms - oldest_ms, 0) / 1000
        return LaneDepth(name=lane, queued=queued, leased=leased, oldest_s=oldest_s)


def bounded(lanes: Sequence[LaneDepth]) -> list[LaneDepth]:
    """The fullest lanes, by name, and the others as one."""
    if len(lanes) <= MAX_LANES:
        return list(lanes)
    fullest = sorted(lanes, key=lambda lane: (-lane.queued - lane.leased, lane.name))
    kept, rest = fullest[: MAX_LANES - 1], fullest[MAX_LANES - 1 :]
    other = LaneDepth(
        name=OTHER_LANES,
        queued=sum(lane.queued for lane in rest),
        leased=sum(lane.leased for lane in rest),
        oldest_s=max(lane.oldest_s for lane in rest),
    )
    return [*sorted(kept, key=lambda lane: lane.name), other]
