"""Doors: by key, or open to whoever reaches the gateway."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection

from producer.gateway.access import Door, bearer
from producer.gateway.caller import Caller
from producer.gateway.errors import Forbidden, Unauthorized
from producer.gateway.keys import KeyRing
from producer.gateway.settings import GatewaySettings

_Connection = ASGIConnection[Any, Any, Any, Any]


class KeyDoor:
    """Lets in who shows a key."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def enter(self, connection: _Connection, key: str = "") -> Caller:
        """See `Door.enter`.

        Raises:
            Unavailable: the keys are gone, or can't be read.
        """
        return await self.caller_of(bearer(connection, key))

    async def caller_of(self, text: str) -> Caller:
        """Who has this key.

        Raises:
            Unauthorized: nobody has it any more, or ever had.
            Unavailable: the keys are gone, or can't be read.
        """
        key = await self._ring.find(text)
        if key is None:
            raise Unauthorized(
                "Incorrect API key provided: this gateway has none like it", code="invalid_api_key"
            )
        match key.state(time.time()):
            case "revoked":
                raise Unauthorized(f"this key ({key.id}) was revoked", code="invalid_api_key")
            case "expired":
                raise Unauthorized(f"this key ({key.id}) has expired", code="expired_api_key")
            case _:
                return key.caller


class OpenDoor:
    """Lets everybody in, as one and the same caller and an operator.

    A browser of this machine can reach a gateway on a loopback address for any web page that it shows. So
    such a gateway refuses what pages of others send: a request from another origin, and one that was sent to
    another name than this machine's, which is what a page's own name looks like after DNS rebinding.
    """

    def __init__(self, *, for_this_machine: bool, origins: Collection[str] = ()) -> None:
        self._for_this_machine = for_this_machine
        self._origins = origins

    async def enter(self, connection: _Connection, key: str = "") -> Caller:
        """See `Door.enter`."""
        host = connection.headers.get("host", "")
        if self._for_this_machine and not _is_local(_name(f"//{host}")):
            raise Forbidden(
                f"this gateway has no keys and is for this machine alone, not for {host[:200]!r}; behind a "
                "proxy, create keys or start it with --auth off",
                code="foreign_host",
            )
        origin = connection.headers.get("origin")
        if origin is not None and origin not in self._origins and urlsplit(origin).netloc != host:
            raise Forbidden(
                f"pages of {origin[:200]!r} may not use this gateway; --cors-origins lets them",
                code="foreign_origin",
            )
        return Caller(is_operator=True)


class AutoDoor:
    """Open as long as there has never been a key; by key from then on."""

    def __init__(self, ring: KeyRing, before: OpenDoor) -> None:
        self._ring = ring
        self._before = before
        self._by_key = KeyDoor(ring)

    async def enter(self, connection: _Connection, key: str = "") -> Caller:
        """See `Door.enter`."""
        door = self._before if await self._ring.is_empty() else self._by_key
        return await door.enter(connection, key)


def make_door(settings: GatewaySettings, ring: KeyRing) -> Door:
    """The door that the settings want."""
    if settings.auth == "off":
        return OpenDoor(for_this_machine=False, origins=settings.cors_origins)
    if settings.auth == "auto" and settings.is_loopback:
        return AutoDoor(ring, OpenDoor(for_this_machine=True, origins=settings.cors_origins))
    return KeyDoor(ring)


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_local(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
