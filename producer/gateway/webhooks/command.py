"""`penstock webhooks`: create, list, delete, and what could not be delivered."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

import msgspec

from penstock.keys import Keys
from penstock.link import Link
from producer.errors import UsageError
from producer.gateway.keys import check_tenant
from producer.gateway.place import Place
from producer.gateway.webhooks.deliveries import Deliveries, Delivery
from producer.gateway.webhooks.endpoints import (
    EVENT_TYPES,
    EventType,
    Webhook,
    Webhooks,
    open_webhooks,
    webhook_keys,
)
from producer.where import find_server


def run_create(place: Place, tenant: str, url: str, events: str | None) -> int:
    """Make a webhook and print its secret."""
    wanted = None if events is None else _named(events)

    async def create() -> Webhook:
        async with _webhooks(place) as webhooks:
            return await webhooks.create(check_tenant(tenant), url, wanted)

    made = asyncio.run(create())
    print(f"penstock: {made.id} tells {made.url} of {', '.join(made.events)}. Its secret:", file=sys.stderr)
    print(made.secret)
    return 0


def run_list(place: Place, *, as_json: bool) -> int:
    """Print all tenants' webhooks."""

    async def ask() -> list[Webhook]:
        async with _webhooks(place) as webhooks:
            return sorted(
                (await webhooks.all()).values(), key=lambda one: (one.tenant, one.created_at, one.id)
            )

    found = asyncio.run(ask())
    for one in found:
        if as_json:
            described = msgspec.to_builtins(one)
            del described["secret"]
            print(msgspec.json.encode(described).decode())
        else:
            print(f"{one.id}  {one.tenant:<20}  {one.url}  {', '.join(one.events)}")
    if not found and not as_json:
        print("no webhooks")
    return 0


def run_delete(place: Place, webhook_id: str) -> int:
    """Remove a webhook; 1 where there was none."""

    async def delete() -> bool:
        async with _webhooks(place) as webhooks:
            return await webhooks.delete(webhook_id, None)

    if not asyncio.run(delete()):
        print(f"penstock: there is no webhook {webhook_id}", file=sys.stderr)
        return 1
    print("deleted")
    return 0


def run_deliveries(place: Place, *, given_up: bool, as_json: bool) -> int:
    """Print deliveries that are to come, or those that were given up."""
    url, settings = find_server(place.where), place.settings()

    async def ask() -> list[Delivery]:
        link = Link(url)
        try:
            return await Deliveries(link, webhook_keys(settings)).list(given_up=given_up)
        finally:
            await link.aclose()

    found = asyncio.run(ask())
    for one in found:
        print(msgspec.json.encode(one).decode() if as_json else _in_words(one))
    if not found and not as_json:
        print("none was given up in the last week" if given_up else "none is under way")
    return 0


@asynccontextmanager
async def _webhooks(place: Place) -> AsyncGenerator[Webhooks]:
    settings = place.settings()
    link = Link(settings.redis or "redis://")
    try:
        yield open_webhooks(settings, link, Keys(settings.shard).gateway_webhooks)
    finally:
        await link.aclose()


def _named(events: str) -> list[EventType]:
    try:
        return msgspec.convert([name.strip() for name in events.split(",")], list[EventType])
    except msgspec.ValidationError as error:
        raise UsageError(f"--events: {error}; there are {', '.join(EVENT_TYPES)}") from None


def _in_words(one: Delivery) -> str:
    at = datetime.fromtimestamp(one.created_at).astimezone().isoformat(" ", "seconds")
    error = f"  {one.error}" if one.error else ""
    return f"{one.event_id}  {one.event_type}  to {one.webhook_id}  {at}  {one.attempts} attempts{error}"
