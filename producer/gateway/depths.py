"""What the queue holds: what waits and for how long, what is leased, what is dead, who is alive.

The server is asked when somebody wants to know, at most once a second, and for no longer than two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from penstock.errors import ServerUnavailable
from penstock.keys import DEFAULT_LANE, GROUP, WHOLE_QUEUE, Keys
from penstock.lanes import LaneSettings, decode_settings
from penstock.link import Link
from penstock.messages import Heartbeat
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
    settings: LaneSettings = LaneSettings()


class Depths(Struct, frozen=True, kw_only=True):
    """The queue at one moment."""

    now_ms: int
    """The server's time."""
    lanes: list[LaneDepth]
    dead: int
    consumers: dict[str, Heartbeat]
    """Those that are alive, by name."""
    queue: LaneSettings
    """What is set for all of it."""


class QueueDepths:
    """Asks, and remembers for a second."""

    def __init__(self, link: Link, keys: Keys, served: Served) -> None:
        self._link = link
        self._keys = keys
        self._served = served
        self._asking = asyncio.Lock()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._asked_at = -FRESH_S
        self._found: Depths | ServerUnavailable = ServerUnavailable("the server was not asked yet")

    async def read(self) -> Depths:
        """The queue as it was within the last second.

        Raises:
            ServerError: the server can't be asked, or does not answer in time.
        """
        async with self._asking:
            if time.monotonic() - self._asked_at >= FRESH_S:
                self._found = ServerUnavailable(f"the server did not answer within {LIMIT_S:g} s")
                try:
                    async with asyncio.timeout(LIMIT_S):
                        self._found = await self._ask()
                except ServerUnavailable as error:
                    self._found = error
                except TimeoutError:
                    pass
                self._asked_at = time.monotonic()
            if isinstance(self._found, ServerUnavailable):
                raise ServerUnavailable(str(self._found))
            return self._found

    async def _ask(self) -> Depths:
        fields, dead, now_ms, consumers = await asyncio.gather(
            self._link.command("HGETALL", self._keys.lanes),
            self._link.command("XLEN", self._keys.dead),
            server_time_ms(self._link),
            self._served.consumers(),
        )
        settings = {
            name.decode(errors="replace"): decode_settings(data)
            for name, data in zip(fields[::2], fields[1::2], strict=True)
        }
        queue = settings.pop(WHOLE_QUEUE, LaneSettings())
        settings.setdefault(DEFAULT_LANE, LaneSettings())
        depths = await asyncio.gather(
            *(self._depth(lane, settings[lane], now_ms) for lane in sorted(settings))
        )
        return Depths(now_ms=now_ms, lanes=bounded(depths), dead=int(dead), consumers=consumers, queue=queue)

    async def _depth(self, lane: str, settings: LaneSettings, now_ms: int) -> LaneDepth:
        stream = self._keys.jobs(lane)
        async with self._turns:
            length = int(await self._link.command("XLEN", stream))
            if not length:
                return LaneDepth(name=lane, settings=settings)
            groups: list[list[Any]] = await self._link.command("XINFO", "GROUPS", stream)
            found = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in groups]
            ours = next((info for info in found if info[b"name"] == GROUP.encode()), None)
            leased = int(ours[b"pending"]) if ours is not None else 0
            delivered = ours[b"last-delivered-id"].decode() if ours is not None else "0-0"
            oldest = await self._link.command("XRANGE", stream, f"({delivered}", "+", "COUNT", 1)
        oldest_ms = int(oldest[0][0].partition(b"-")[0]) if oldest else now_ms
        return LaneDepth(
            name=lane,
            queued=max(length - leased, 0),
            leased=leased,
            oldest_s=max(now_ms - oldest_ms, 0) / 1000,
            settings=settings,
        )


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
