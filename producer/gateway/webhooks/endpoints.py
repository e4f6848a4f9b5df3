"""Where tenants want to be told, and of what."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from penstock.keys import Keys
from penstock.link import Link
from producer.gateway.errors import BadRequest, Unavailable
from producer.gateway.records import FileRecords, Records, ServerRecords
from producer.gateway.settings import GatewaySettings

EventType = Literal[
    "job.completed",
    "job.failed",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
]
EVENT_TYPES: Final[tuple[EventType, ...]] = get_args(EventType)
MOST_OF_A_TENANT: Final = 20

Url = Annotated[str, Meta(min_length=8, max_length=2048)]


class Webhook(Struct, frozen=True, kw_only=True):
    """One place that is told. Times are Unix seconds."""

    id: str
    tenant: str
    url: Url
    events: list[EventType]
    secret: str
    """For the signature: `whsec_` and base64."""
    created_at: int

    def wants(self, tenant: str, event_type: str) -> bool:
        """Whether it is told of a tenant's event."""
        return self.tenant == tenant and event_type in self.events


class Webhooks:
    """All tenants' webhooks."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._read: Mapping[str, bytes | msgspec.Raw] | None = None
        self._known: dict[str, Webhook] = {}

    async def create(self, tenant: str, url: str, events: list[EventType] | None) -> Webhook:
        """A new one, of every event where none is named.

        Raises:
            BadRequest: the URL is not one, or the tenant has too many.
        """
        if len([one for one in (await self.all()).values() if one.tenant == tenant]) >= MOST_OF_A_TENANT:
            raise BadRequest(
                f"a tenant may have {MOST_OF_A_TENANT} webhooks; delete one first", code="too_many"
            )
        made = Webhook(
            id=f"wh_{secrets.token_hex(8)}",
            tenant=tenant,
            url=_checked(url),
            events=list(dict.fromkeys(events or EVENT_TYPES)),
            secret=f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}",
            created_at=int(time.time()),
        )
        await self._records.put(made.id, msgspec.json.encode(made))
        return made

    async def all(self) -> dict[str, Webhook]:
        """By id.

        Raises:
            Unavailable: they can't be read.
            ServerError: the server can't be asked for them.
        """
        records = await self._records.read()
        if records is not self._read:
            try:
                self._known = {
                    name: msgspec.json.decode(data, type=Webhook) for name, data in records.items()
                }
            except (ValueError, msgspec.DecodeError) as error:
                raise Unavailable(f"a webhook can't be read: {error}") from None
            self._read = records
        return self._known

    async def delete(self, webhook_id: str, tenant: str | None) -> bool:
        """Remove a tenant's webhook, or anybody's where the tenant is None; whether there was one."""
        found = (await self.all()).get(webhook_id)
        if found is None or tenant not in (None, found.tenant):
            return False
        return await self._records.remove(webhook_id)


def open_webhooks(settings: GatewaySettings, link: Link, hash_key: str) -> Webhooks:
    """The webhooks, where the settings say that keys are."""
    if settings.keys == "redis":
        return Webhooks(ServerRecords(link, hash_key))
    return Webhooks(FileRecords(settings.folder / "webhooks.json"))


def webhook_keys(settings: GatewaySettings) -> Keys:
    """Keys of what is to be told by these webhooks.

    Gateways that have them in files of different folders may serve one queue, and none could tell what is to
    be told by another's; so a folder has a name of its own.
    """
    return Keys(settings.shard, "" if settings.keys == "redis" else _name_of(settings.folder))


def _name_of(folder: Path) -> str:
    """Made once; of the path's own, where nothing can be written there."""
    file = folder / "webhooks.id"
    with suppress(OSError):
        if name := file.read_text().strip():
            return name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file.open("a+") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            opened.seek(0)
            name = opened.read().strip() or secrets.token_hex(8)
            opened.seek(0)
            opened.truncate()
            opened.write(f"{name}\n")
    except OSError:
        return hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return name


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise BadRequest(
            f"{url[:200]!r} is not a webhook's URL; one looks like https://example.org/hooks/penstock",
            param="url",
            code="invalid_value",
        )
    return url
