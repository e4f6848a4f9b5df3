"""The jobs of a batch that is to end before its rows have: cancelled, wherever they are."""

from __future__ import annotations

import asyncio
from typing import Any

from penstock.client import Client
from penstock.keys import JOB, NONCE, Keys, is_nonce
from penstock.link import Link
from penstock.messages import decode_labels

ENTRIES = 200
"""Of a lane, looked at in one call."""
AT_ONCE = 8


async def cancel_all(client: Client, job_ids: list[str]) -> None:
    """Cancel these; those that have ended meanwhile stay as they are."""
    for at in range(0, len(job_ids), AT_ONCE):
        await asyncio.gather(*map(client.cancel, job_ids[at : at + AT_ONCE]))


async def find_jobs(link: Link, keys: Keys, lane: str, batch_id: str) -> list[str]:
    """Ids of the batch's jobs in a lane. All of it is read: for the rare case that nobody knows them."""
    found: list[str] = []
    after, label = "-", f'"{batch_id}"'.encode()
    while entries := await link.command("XRANGE", keys.jobs(lane), after, "+", "COUNT", ENTRIES):
        for entry, flat in entries:
            fields: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
            data = fields.get(JOB.encode(), b"")
            if label in data and decode_labels(data).batch == batch_id:
                found.append(_id_of(lane, entry, fields))
        after = f"({entries[-1][0].decode()}"
    return found


def _id_of(lane: str, entry: bytes, fields: dict[bytes, Any]) -> str:
    nonce = fields.get(NONCE.encode(), b"").decode("utf-8", "replace")
    return f"{lane}.{entry.decode()}" + (f".{nonce}" if is_nonce(nonce) else "")
