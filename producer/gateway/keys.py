"""Keys: who has one, for which tenant and lane, with which limits.

A key is 256 random bits behind a prefix. What is kept of it is its SHA-256: nobody who reads the store can
use it, and, being found by its digest, a key is never compared character by character.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from penstock.keys import DEFAULT_LANE, check_lane
from penstock.link import Link
from producer.errors import UsageError
from producer.gateway.caller import EVERYBODY, Caller, Limits
from producer.gateway.errors import Unavailable
from producer.gateway.records import FileRecords, Records, ServerRecords
from producer.gateway.settings import GatewaySettings

PREFIX: Final = "psk_"
TENANT_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

LONGEST_S: Final = 36_500 * 86400
"""Longest life of a key, but for those that live for ever."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PERIOD: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])")


class Key(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a key. Times are Unix seconds."""

    id: str
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the key, hexadecimal."""
    tenant: Annotated[str, Meta(pattern=TENANT_PATTERN)]
    lane: str
    limits: Limits = Limits()
    is_operator: bool = False
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    note: str = ""

    @property
    def caller(self) -> Caller:
        """Who shows it."""
        return Caller(
            tenant=self.tenant,
            key_id=self.id,
            lane=self.lane,
            limits=self.limits,
            is_operator=self.is_operator,
        )

    def state(self, now: float) -> str:
        """`good`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "good"


class Grant(Struct, frozen=True, kw_only=True):
    """What a new key is to be good for."""

    tenant: str
    lane: str | None = None
    """By default the tenant's own: the lane of its name."""
    limits: Limits = Limits()
    is_operator: bool = False
    expires_in_s: int | None = None
    note: str = ""


def make_key(grant: Grant) -> tuple[str, Key]:
    """A new key, and what is kept of it.

    Raises:
        UsageError: the tenant or the lane is not a name.
    """
    text = PREFIX + secrets.token_urlsafe(32)
    now = int(time.time())
    key = Key(
        id=f"key_{secrets.token_hex(8)}",
        digest=digest_of(text),
        tenant=check_tenant(grant.tenant),
        lane=_lane_of(grant),
        limits=grant.limits,
        is_operator=grant.is_operator,
        created_at=now,
        expires_at=None if grant.expires_in_s is None else now + grant.expires_in_s,
        note=grant.note,
    )
    return text, key


def digest_of(text: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def seconds_of(period: str) -> int:
    """`90d`, `12h` and the like.

    Raises:
        UsageError: it is not of that form, or longer than a hundred years.
    """
    match = _PERIOD.fullmatch(period)
    if match is None:
        raise UsageError(
            f"{period!r} is not a period; one looks like 90d, and the units are s, m, h, d and w"
        )
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds > LONGEST_S:
        raise UsageError(f"{period} is too long a period; {LONGEST_S // _UNITS['d']}d are the longest")
    return seconds


def limits_of(requests_per_minute: int | None, queued_tokens: int | None) -> Limits:
    """Limits, checked.

    Raises:
        UsageError: one is less than 1.
    """
    for name, value in (("requests-per-minute", requests_per_minute), ("queued-tokens", queued_tokens)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it must be 1 or more")
    return Limits(requests_per_minute=requests_per_minute, queued_tokens=queued_tokens)


class KeyRing:
    """All keys of a gateway."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._read: Mapping[str, bytes | msgspec.Raw] | None = None
        self._by_digest: dict[str, Key] = {}

    async def find(self, text: str) -> Key | None:
        """The key of this text, good or not.

        Raises:
            Unavailable: keys can't be read, or are gone; nobody is to be let in.
            ServerError: the server can't be asked for them.
        """
        return (await self._all()).get(digest_of(text))

    async def is_empty(self) -> bool:
        """Whether there has never been a key."""
        return not await self._all()

    async def list(self) -> list[Key]:
        """Every key, oldest first."""
        return sorted((await self._all()).values(), key=lambda key: (key.created_at, key.id))

    async def add(self, key: Key) -> None:
        """Let in whoever has this key, from a second after this on at the latest."""
        await self._records.put(key.id, msgspec.json.encode(key))

    async def revoke(self, key_id: str) -> Key | None:
        """Let nobody in by this key any more; None where there is none of this id. It stays in the list, so
        that revoking the last one does not look as if there had never been any."""
        for key in await self.list():
            if key.id == key_id:
                revoked = msgspec.structs.replace(key, revoked_at=key.revoked_at or int(time.time()))
                await self.add(revoked)
                return revoked
        return None

    async def _all(self) -> dict[str, Key]:
        records = await self._records.read()
        if records is not self._read:
            try:
                keys = [msgspec.json.decode(data, type=Key) for data in records.values()]
            except (ValueError, msgspec.DecodeError) as error:
                raise Unavailable(f"a key can't be read: {error}", code="keys_unreadable") from None
            self._by_digest = {key.digest: key for key in keys}
            self._read = records
        return self._by_digest


def open_ring(settings: GatewaySettings, link: Link, hash_key: str) -> KeyRing:
    """The keys, where the settings say that they are.

    Args:
        hash_key: of the hash that has them on the server.
    """
    if settings.keys == "redis":
        return KeyRing(ServerRecords(link, hash_key, settings.folder / "keys-in-redis"))
    return KeyRing(FileRecords(settings.folder / "keys.json", guarded=True))


def check_tenant(tenant: str) -> str:
    """Give the tenant's name back.

    Raises:
        UsageError: it is not one.
    """
    if re.fullmatch(TENANT_PATTERN.strip("^$"), tenant) is None:
        raise UsageError(
            f"{tenant[:80]!r} is not a tenant's name; use letters, digits, '_', '.' and '-', 64 at most, a "
            "letter or digit first"
        )
    return tenant


def _lane_of(grant: Grant) -> str:
    default = DEFAULT_LANE if grant.tenant == EVERYBODY else grant.tenant
    try:
        return check_lane(grant.lane or default)
    except ValueError as error:
        hint = "" if grant.lane else "; name the tenant's lane with --lane"
        raise UsageError(f"{error}{hint}") from None
