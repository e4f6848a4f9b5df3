"""Deliveries that are to be made, on the server: whichever gateway lives takes what is due, and tries again.

A delivery is a string on the server, and its id stands in a sorted set by when it is due. Who takes it has
it for a lease; a gateway that dies in between loses it to another, so that a delivery may be made twice,
under the same webhook-id.
"""

from __future__ import annotations

import random
from typing import Final

import msgspec
from msgspec import Struct

from penstock.keys import Keys
from penstock.link import Link
from penstock.presence import server_time_ms
from penstock.scripts import DUE

LEASE_S: Final = 60.0
"""Longer than an attempt takes."""

PAUSES_S: Final = (5, 30, 120, 600, 1800, 3600, 2 * 3600, 4 * 3600, 6 * 3600, 12 * 3600)
"""Between attempts, about: a day and two hours in all."""

KEPT_S: Final = 8 * 86400
"""How long the server remembers a delivery, made or given up."""

_UNTIL_FORGOTTEN_MS: Final = 7 * 86400 * 1000


class Delivery(Struct, frozen=True, kw_only=True):
    """One event on its way to one webhook."""

    id: str
    """`EVENT.WEBHOOK`."""
    event_id: str
    """Sent as webhook-id, the same at every attempt."""
    event_type: str
    webhook_id: str
    payload: str
    """The event's JSON, which is signed."""
    created_at: int
    attempts: int = 0
    error: str = ""
    """Of the last attempt."""


class Deliveries:
    """The deliveries of a queue."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def add(self, delivery: Delivery) -> None:
        """Have it made soon. Adding it again while it is remembered changes nothing.

        Raises:
            ServerError: it may or may not have been added; adding it again is safe.
        """
        text, name = msgspec.json.encode(delivery), self._keys.gateway_delivery(delivery.id)
        # The string first: an id that is due and has none is taken for done.
        await self._link.command("SET", name, text, "NX", "EX", KEPT_S)
        await self._link.command("ZADD", self._keys.gateway_due, "NX", 0, delivery.id)

    async def take(self, count: int) -> list[Delivery]:
        """What is due, for a lease."""
        due = self._keys.gateway_due
        ids: list[bytes] = await self._link.script(DUE, [due], [count, int(LEASE_S * 1000)])
        taken: list[Delivery] = []
        for delivery_id in ids:
            found = await self._read(delivery_id.decode())
            if found is None:
                await self._link.command("ZREM", due, delivery_id)
            else:
                taken.append(found)
        return taken

    async def made(self, delivery: Delivery) -> None:
        """It arrived."""
        await self._link.command("ZREM", self._keys.gateway_due, delivery.id)
        await self._link.command("DEL", self._keys.gateway_delivery(delivery.id))

    async def failed(self, delivery: Delivery, error: str, *, for_good: bool = False) -> bool:
        """It did not: try again later, unless it was tried for a day; whether it will be tried again."""
        tried = msgspec.structs.replace(delivery, attempts=delivery.attempts + 1, error=error[:500])
        name, now_ms = self._keys.gateway_delivery(delivery.id), await server_time_ms(self._link)
        await self._link.command("SET", name, msgspec.json.encode(tried), "XX", "KEEPTTL")
        if not for_good and delivery.attempts < len(PAUSES_S):
            pause_ms = int(PAUSES_S[delivery.attempts] * random.uniform(800, 1200))
            await self._link.command("ZADD", self._keys.gateway_due, "XX", now_ms + pause_ms, delivery.id)
            return True
        undelivered, forgotten = self._keys.gateway_undelivered, now_ms - _UNTIL_FORGOTTEN_MS
        await self._link.command("ZADD", undelivered, now_ms, delivery.id)
        await self._link.command("ZREM", self._keys.gateway_due, delivery.id)
        await self._link.command("ZREMRANGEBYSCORE", undelivered, "-inf", forgotten)
        return False

    async def list(self, *, given_up: bool, count: int = 1000) -> list[Delivery]:
        """Deliveries that were given up, the latest first; or those to come, the soonest first."""
        if given_up:
            found = await self._link.command("ZREVRANGE", self._keys.gateway_undelivered, 0, count - 1)
        else:
            found = await self._link.command("ZRANGE", self._keys.gateway_due, 0, count - 1)
        read = [await self._read(delivery_id.decode()) for delivery_id in found]
        return [delivery for delivery in read if delivery is not None]

    async def _read(self, delivery_id: str) -> Delivery | None:
        data = await self._link.command("GET", self._keys.gateway_delivery(delivery_id))
        try:
            return None if data is None else msgspec.json.decode(data, type=Delivery)
        except msgspec.DecodeError:
            return None
