"""What the queue serves, from its consumers' heartbeats: read often, asked of the server rarely."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from penstock.errors import ServerError, ServerUnavailable
from penstock.keys import Keys
from penstock.link import Link
from penstock.messages import Heartbeat
from penstock.presence import alive_consumers

FRESH_S: Final = 1.0
"""How old an answer may be."""
LIMIT_S: Final = 2.0
"""How long an answer may take: probes, and whoever waits behind them, have no more patience than that."""


class Served:
    """Consumers that are alive, by name."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._asking = asyncio.Lock()
        self._at = -FRESH_S
        self._consumers: dict[str, Heartbeat] = {}
        self._why_not = ""
        """Why the last question had no answer; empty where it had one."""

    async def consumers(self) -> dict[str, Heartbeat]:
        """Heartbeats no older than a second. All who ask while the server does not answer are told so
        together, not one after the other.

        Raises:
            ServerUnavailable: the server can't be asked, or does not answer in time.
        """
        async with self._asking:
            if time.monotonic() - self._at >= FRESH_S:
                self._why_not = await self._ask()
                self._at = time.monotonic()
        if self._why_not:
            raise ServerUnavailable(self._why_not)
        return self._consumers

    async def _ask(self) -> str:
        try:
            async with asyncio.timeout(LIMIT_S):
                self._consumers = await alive_consumers(self._link, self._keys)
        except ServerError as error:
            return str(error)
        except TimeoutError:
            return f"the server did not answer within {LIMIT_S:g} s"
        return ""

    async def models(self) -> dict[str, Heartbeat]:
        """By model, a heartbeat of a consumer that serves it, a ready one where there is one."""
        found: dict[str, Heartbeat] = {}
        for beat in (await self.consumers()).values():
            if beat.model not in found or beat.phase == "ready":
                found[beat.model] = beat
        return found

    async def known_models(self) -> dict[str, Heartbeat]:
        """As `models`; what was known last where the server can't be asked."""
        try:
            return await self.models()
        except ServerError:
            return {beat.model: beat for beat in self._consumers.values()}
