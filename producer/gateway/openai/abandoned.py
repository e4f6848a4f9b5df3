"""Streamed jobs whose reader went away: cancelled, unless it comes back in time.

It may come back to another gateway. So whoever takes a stream up again writes its own sign on the server, and
whoever lost a reader looks there before it cancels.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from contextlib import AsyncExitStack

from penstock.client import Client
from penstock.errors import PenstockError
from penstock.keys import Keys
from penstock.link import Link
from penstock.messages import DEFAULT_RESULT_TTL_S
from producer.gateway.openai.waiting import cancel_all

log = logging.getLogger(__name__)


class Abandoned:
    """Use it as a context. At its end the jobs that it still watches are left to run to their end."""

    def __init__(self, client: Client, link: Link, keys: Keys, grace_s: float) -> None:
        self._client = client
        self._link = link
        self._keys = keys
        self._grace_s = grace_s
        self._watching: set[asyncio.Task[None]] = set()

    async def take_up(self, job_id: str) -> str:
        """Say that somebody reads the job's stream again; the sign of this reader."""
        reader = secrets.token_hex(8)
        await self._link.command("SET", self._keys.gateway_reader(job_id), reader, "EX", DEFAULT_RESULT_TTL_S)
        return reader

    def leave(self, job_ids: list[str], reader: str, held: AsyncExitStack, *, can_resume: bool) -> None:
        """A reader with this sign, empty for the first one, went away.

        Args:
            held: closed when the jobs have ended.
        """
        grace_s = self._grace_s if can_resume else 0.0
        task = asyncio.create_task(self._watch(job_ids, reader, held, grace_s), name="gateway-abandoned")
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def __aenter__(self) -> Abandoned:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def _watch(self, job_ids: list[str], reader: str, held: AsyncExitStack, grace_s: float) -> None:
        async with held:
            if grace_s > 0:
                await asyncio.sleep(grace_s)
            if grace_s > 0 and await self._is_taken_up(job_ids[0], reader):
                with contextlib.suppress(PenstockError):
                    await self._client.result(job_ids[0])
            else:
                await cancel_all(self._client, job_ids)

    async def _is_taken_up(self, job_id: str, reader: str) -> bool:
        try:
            found = await self._link.command("GET", self._keys.gateway_reader(job_id))
        except PenstockError as error:
            log.warning("job %s is left to run: %s", job_id, error)
            return True
        return (found or b"").decode() != reader
