"""Which consumers are alive, by what they say of themselves on the server."""

from __future__ import annotations

import asyncio

import msgspec

from penstock.keys import Keys
from penstock.link import Link
from penstock.messages import Heartbeat, decode_heartbeat

NOBODY = "no consumer is alive on this server; start one with `penstock up` or `penstock consumer`"


async def server_time_ms(link: Link) -> int:
    """The server's clock.

    Raises:
        ServerError: the server can't be asked.
    """
    seconds, micros = await link.command("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def alive_consumers(link: Link, keys: Keys) -> dict[str, Heartbeat]:
    """Heartbeats of the consumers that can be counted on, by name.

    Raises:
        ServerError: the server can't be asked.
    """
    fields: list[bytes]
    fields, now_ms = await asyncio.gather(link.command("HGETALL", keys.consumers), server_time_ms(link))
    found: dict[str, Heartbeat] = {}
    for name, data in zip(fields[::2], fields[1::2], strict=True):
        try:
            beat = decode_heartbeat(data)
        except msgspec.DecodeError:
            continue
        if beat.alive(now_ms):
            found[name.decode(errors="replace")] = beat
    return found


def in_words(consumers: dict[str, Heartbeat]) -> str | None:
    """Why nothing is being answered, where that is for want of a consumer; None where one is ready."""
    if not consumers:
        return NOBODY
    if any(beat.phase == "ready" for beat in consumers.values()):
        return None
    phase = next(iter(consumers.values())).phase
    return f"the consumer is not ready yet: {phase}"
