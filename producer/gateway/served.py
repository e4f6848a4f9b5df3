"""What the queue serves, from its consumers' heartbeats: read often, asked of the server rarely."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from penstock.errors import ServerError
from penstock.keys import Keys
from penstock.link import Link
from penstock.messages import Heartbeat
from penstock.presence import alive_consumers

FRESH_S: Final = 1.0
"""How old an answer may be."""


class Served:
    """Consumers that are alive, by name."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._asking = asyncio.Lock()
        self._at = -FRESH_S
        self._consumers: dict[str, Heartbeat] = {}

    async def consumers(self) -> dict[str, Heartbeat]:
        """Heartbeats no older than a second.

        Raises:
            ServerError: the server can't be asked.
        """
        async with self._asking:
            if time.monotonic() - self._at >= FRESH_S:
                self._consumers = await alive_consumers(self._link, self._keys)
                self._at = time.monotonic()
        return self._consumers

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
