"""Keys for tests, made as `penstock keys create` makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from producer.gateway.keys import Grant, Key, KeyRing, limits_of, make_key
from producer.gateway.records import FileRecords


async def add_key(
    folder: Path,
    tenant: str,
    requests_per_minute: int | None = None,
    queued_tokens: int | None = None,
    **grant: Any,
) -> tuple[dict[str, str], Key]:
    """Headers that show a new key of a gateway's folder, and what is kept of it."""
    limits = limits_of(requests_per_minute, queued_tokens)
    text, key = make_key(Grant(tenant=tenant, limits=limits, **grant))
    await ring(folder).add(key)
    return {"Authorization": f"Bearer {text}"}, key


def ring(folder: Path) -> KeyRing:
    """The keys of a gateway's folder."""
    return KeyRing(FileRecords(folder / "keys.json"))
