"""`penstock keys`: create, list, revoke. Needs nothing of the gateway's extra."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import msgspec

from penstock.client import Client
from penstock.errors import ServerError
from penstock.keys import Keys
from penstock.link import Link
from producer.errors import UsageError
from producer.gateway.errors import Unavailable
from producer.gateway.keys import Grant, Key, KeyRing, make_key, open_ring
from producer.gateway.place import Place
from producer.gateway.settings import GatewaySettings


def run_create(place: Place, grant: Grant, weight: float | None) -> int:
    """Make a key and print it, once."""
    text, key = make_key(grant)

    async def create() -> None:
        settings = place.settings()
        await _declare(settings.redis, key.lane, weight)
        async with _ring(settings) as ring:
            await _require_own_name(ring, key.tenant)
            await ring.add(key)

    asyncio.run(create())
    print(
        f"penstock: {key.id}, tenant {key.tenant}, {_rights(key)}. This is the key; it is not",
        file=sys.stderr,
    )
    print("kept and won't be shown again:", file=sys.stderr)
    print(text)
    return 0


def run_list(place: Place, *, as_json: bool) -> int:
    """Print all keys, or rather what is kept of them."""

    async def ask() -> list[Key]:
        async with _ring(place.settings()) as ring:
            return await ring.list()

    keys = asyncio.run(ask())
    for key in keys:
        print(_as_json(key) if as_json else _in_words(key))
    if not keys and not as_json:
        print("no keys")
    return 0


def run_revoke(place: Place, key_ids: tuple[str, ...]) -> int:
    """Let nobody in by these keys any more; 1 where one was not there."""
    if not key_ids:
        raise UsageError("name keys by their ids; `penstock keys list` lists them")

    async def revoke() -> int:
        problems = 0
        async with _ring(place.settings()) as ring:
            for key_id in key_ids:
                if await ring.revoke(key_id) is None:
                    problems += 1
                    print(f"penstock: there is no key {key_id}", file=sys.stderr)
                else:
                    print(f"{key_id} revoked; running gateways refuse it within a second or two")
        return int(problems > 0)

    return asyncio.run(revoke())


@asynccontextmanager
async def _ring(settings: GatewaySettings) -> AsyncGenerator[KeyRing]:
    link = Link(settings.redis or "redis://")
    try:
        yield open_ring(settings, link, Keys(settings.shard).gateway_keys)
    finally:
        await link.aclose()


async def _require_own_name(ring: KeyRing, tenant: str) -> None:
    """Tenants have folders by their names, which are one folder for some systems where only cases differ."""
    with suppress(Unavailable):  # they are gone, and begin anew
        for key in await ring.list():
            if key.tenant != tenant and key.tenant.lower() == tenant.lower():
                raise UsageError(f"there is a tenant {key.tenant!r} already; use that name, or another one")


async def _declare(url: str, lane: str, weight: float | None) -> None:
    """Declare the lane where there is a server to declare it on; else its first job does."""
    if not url:
        if weight is not None:
            raise UsageError(
                "--weight is set on the server, and none runs; start it, or name one with --redis"
            )
        return
    async with Client(url) as client:
        try:
            known = {one.name for one in await client.lanes()}
            if weight is not None or lane not in known:
                await client.set_lane(lane, **({} if weight is None else {"weight": weight}))
        except ValueError as error:
            raise UsageError(f"--weight: {str(error).partition(' - at')[0]}") from None
        except ServerError as error:
            if weight is not None:
                raise
            print(f"penstock: lane {lane} is declared by its first job: {error}", file=sys.stderr)


def _in_words(key: Key) -> str:
    state = key.state(time.time())
    words = [key.id, f"{key.tenant:<20}", _rights(key), f"created {_day(key.created_at)}"]
    if state == "revoked":
        words.append("REVOKED")
    elif key.expires_at is not None:
        words.append(f"{'EXPIRED' if state == 'expired' else 'expires'} {_day(key.expires_at)}")
    if key.note:
        words.append(f"({key.note})")
    return "  ".join(words)


def _rights(key: Key) -> str:
    words = [f"lane {key.lane}"]
    if key.is_operator:
        words.append("operator")
    if key.limits.requests_per_minute is not None:
        words.append(f"{key.limits.requests_per_minute} requests/min")
    if key.limits.queued_tokens is not None:
        words.append(f"{key.limits.queued_tokens} queued tokens")
    return ", ".join(words)


def _day(at: int) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")


def _as_json(key: Key) -> str:
    described = msgspec.to_builtins(key)
    del described["digest"]
    return msgspec.json.encode({**described, "state": key.state(time.time())}).decode()
