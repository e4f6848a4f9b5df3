"""Whose a job is: its id, signed for the tenant that it was made for.

To a tenant, a job's name is its id and a tag: `LANE.ENTRY.NONCE.TAG`, where the tag is an HMAC of tenant and
id under a secret that only the server and its gateways know. So nothing has to be remembered of a job, for
however long it waits, and no tenant can name another's job, nor one that came by a raw XADD or by the client.
Operators may use either form, for any job.

The secret lives on the server, as the jobs do: when it is lost, so are they.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import Final

from penstock.keys import JobId, Keys
from penstock.link import Link
from producer.gateway.caller import Caller
from producer.gateway.errors import NotFound

FRESH_S: Final = 10.0
"""After a flush, gateways sign by one new secret again within this time."""

_TAG_DIGITS: Final = 32  # 128 bits


class JobHandles:
    """Signs and reads handles."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._key = keys.gateway_secret
        self._secret: bytes | None = None
        self._at = 0.0

    async def sign(self, job_id: str, tenant: str) -> str:
        """The name by which a tenant knows a job.

        Raises:
            ServerError: the secret can't be had.
        """
        return f"{job_id}.{_tag(await self._known_secret(), job_id, tenant)}"

    async def open(self, handle: str, caller: Caller) -> str:
        """The id of a caller's job.

        Raises:
            NotFound: it is none of the caller's.
            InvalidJobId: an operator gave something that is not an id.
            ServerError: the secret can't be had.
        """
        job_id, _, tag = handle.rpartition(".")
        if len(tag) != _TAG_DIGITS or job_id.count(".") != 2:
            job_id, tag = handle, ""
        if caller.is_operator:
            return str(JobId.parse(job_id))
        if not tag or not hmac.compare_digest(
            tag.encode(), _tag(await self._known_secret(), job_id, caller.tenant).encode()
        ):
            raise NotFound(f"there is no job {handle[:200]!r}", code="job_not_found")
        return job_id

    async def _known_secret(self) -> bytes:
        if self._secret is None or time.monotonic() - self._at > FRESH_S:
            await self._link.command("SET", self._key, secrets.token_bytes(32), "NX")
            self._secret, self._at = bytes(await self._link.command("GET", self._key)), time.monotonic()
        return self._secret


def _tag(secret: bytes, job_id: str, tenant: str) -> str:
    return hmac.new(secret, f"{tenant}\n{job_id}".encode(), hashlib.sha256).hexdigest()[:_TAG_DIGITS]
