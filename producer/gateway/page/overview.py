"""What the page shows of the queue, read together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from penstock.dead import DeadLetter, read_latest_letters
from penstock.errors import ServerError
from penstock.keys import GROUP, JobId, Keys
from penstock.link import Link
from penstock.messages import Heartbeat
from penstock.presence import in_words
from producer.gateway.depths import OTHER_LANES, Depths, LaneDepth, QueueDepths
from producer.gateway.page.batches import BatchView, BatchWatch
from producer.gateway.page.charts import Chart, charts_of
from producer.gateway.page.history import History, Speed
from producer.gateway.page.runs import RunView, RunWatch

MAX_LANES: Final = 50
MAX_IDLE_LANES: Final = 10
"""Of those: lanes that hold nothing and are not paused."""
MAX_CONSUMERS: Final = 20
MAX_LETTERS: Final = 10
MAX_JOBS: Final = 8
"""Of a consumer, by name."""
_PENDING: Final = 100
"""Leases that are looked through, by lane."""


class HeldJob(Struct, frozen=True, kw_only=True):
    """A job that a consumer has."""

    job_id: str
    """Without its nonce, which only the entry itself has."""
    age_s: float
    """Since it was enqueued."""
    deliveries: int


class ConsumerView(Struct, frozen=True, kw_only=True):
    """One consumer."""

    name: str
    beat: Heartbeat
    up_s: float
    speed: Speed
    jobs: list[HeldJob]
    """Some of those that it has, oldest first."""
    num_jobs: int


class Overview(Struct, frozen=True, kw_only=True):
    """The queue as the page shows it."""

    trouble: str | None
    """Why nothing is known, where nothing is."""
    waits_for: str | None = None
    """Why nothing would be answered now."""
    is_paused: bool = False
    num_queued: int = 0
    num_leased: int = 0
    num_dead: int = 0
    lanes: list[LaneDepth] = []
    num_more_lanes: int = 0
    """Lanes beside these."""
    consumers: list[ConsumerView] = []
    num_consumers: int = 0
    """All that are alive."""
    speed: float = 0.0
    """Output tokens per second of all of them."""
    letters: list[DeadLetter] = []
    """Newest first."""
    batches: list[BatchView] = []
    """Those under way, then those that ended, newest first."""
    runs: list[RunView] = []
    """Batches that the gateway does not drive, as far as something of them runs."""
    charts: list[Chart] = []


class OverviewReader:
    """Reads it."""

    def __init__(
        self, link: Link, keys: Keys, depths: QueueDepths, batches: BatchWatch, history: History
    ) -> None:
        self._link = link
        self._keys = keys
        self._depths = depths
        self._batches = batches
        self._history = history
        self._runs = RunWatch(link, keys)

    async def read(self) -> Overview:
        """The queue now. A server that can't be asked leaves what the storage and the gateway know."""
        batches, charts = await self._batches.read(), charts_of(self._history.samples)
        try:
            depths = await self._depths.read()
            letters = await read_latest_letters(self._link, self._keys, MAX_LETTERS) if depths.dead else []
            held = await self._held(depths)
            oldest = [JobId.parse(of_it.jobs[0].job_id) for of_it in held.values() if of_it.jobs]
            runs = await self._runs.read(oldest)
        except ServerError as error:
            return Overview(trouble=f"the queue can't be reached: {error}", batches=batches, charts=charts)
        lanes = shown_lanes(depths.lanes)
        return Overview(
            trouble=None,
            waits_for=in_words(depths.consumers),
            is_paused=depths.queue.paused,
            num_queued=sum(lane.queued for lane in depths.lanes),
            num_leased=sum(lane.leased for lane in depths.lanes),
            num_dead=depths.dead,
            lanes=lanes,
            num_more_lanes=len(depths.lanes) - len(lanes),
            consumers=self._consumers(shown_consumers(depths.consumers), held),
            num_consumers=len(depths.consumers),
            speed=sum(self._history.speed_of(name).generation_tokens_per_s for name in depths.consumers),
            letters=letters,
            batches=batches,
            runs=runs,
            charts=charts,
        )

    async def _held(self, depths: Depths) -> dict[str, _Held]:
        """What each consumer has."""
        found: dict[str, _Held] = {}
        for lane in depths.lanes:
            if not lane.leased or lane.name == OTHER_LANES:
                continue
            stream = self._keys.jobs(lane.name)
            counts = (await self._link.command("XPENDING", stream, GROUP))[3] or []
            for name, count in counts:
                found.setdefault(name.decode(errors="replace"), _Held()).count += int(count)
            entries: list[Any] = await self._link.command("XPENDING", stream, GROUP, "-", "+", _PENDING)
            for entry_id, name, _, deliveries in entries:
                held = found.setdefault(name.decode(errors="replace"), _Held())
                held.jobs.append(_held_job(lane.name, entry_id.decode(), int(deliveries), depths.now_ms))
        return found

    def _consumers(self, beats: Mapping[str, Heartbeat], held: Mapping[str, _Held]) -> list[ConsumerView]:
        now_ms = time.time() * 1000
        return [
            ConsumerView(
                name=name,
                beat=beat,
                up_s=max(now_ms - beat.started_ms, 0) / 1000 if beat.started_ms else 0.0,
                speed=self._history.speed_of(name),
                jobs=sorted(of_it.jobs, key=lambda job: -job.age_s)[:MAX_JOBS],
                num_jobs=of_it.count,
            )
            for name, beat in sorted(beats.items())
            for of_it in (held.get(name, _Held()),)
        ]


class _Held(Struct):
    jobs: list[HeldJob] = []
    count: int = 0


def _held_job(lane: str, entry: str, deliveries: int, now_ms: int) -> HeldJob:
    age_ms = max(now_ms - int(entry.partition("-")[0]), 0)
    return HeldJob(job_id=f"{lane}.{entry}", age_s=age_ms / 1000, deliveries=deliveries)


def shown_consumers(beats: Mapping[str, Heartbeat]) -> dict[str, Heartbeat]:
    """Those that are not ready, which somebody may have to look after, and then the others, by name."""
    names = sorted(beats, key=lambda name: (beats[name].phase == "ready", name))
    return {name: beats[name] for name in names[:MAX_CONSUMERS]}


def shown_lanes(lanes: Sequence[LaneDepth]) -> list[LaneDepth]:
    """The fullest, by name, and some that are idle; never the sum of those beyond them."""
    named = [lane for lane in lanes if lane.name != OTHER_LANES]
    fullest = sorted(
        named, key=lambda lane: (-lane.queued - lane.leased, not lane.settings.paused, lane.name)
    )
    num_idle = sum(not (lane.queued or lane.leased or lane.settings.paused) for lane in named)
    num_shown = len(named) - num_idle + min(num_idle, MAX_IDLE_LANES)
    return sorted(fullest[: min(num_shown, MAX_LANES)], key=lambda lane: lane.name)
