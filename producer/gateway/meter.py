"""What callers have under way, against the limits of their keys.

Counts are on the server, so that several gateways share them. A key without limits costs no round trip.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, Final, Protocol

from penstock.errors import PenstockError, ServerError
from penstock.keys import Keys
from penstock.link import Link
from penstock.scripts import HOLD, KEEP, LET_GO, RATE
from producer.gateway.caller import Caller
from producer.gateway.errors import BadRequest, TooMany

KEEP_S: Final = 60.0
"""Tokens of a gateway that died count for so long."""

RETRY_AFTER_S: Final = 5.0
"""When to come back where that depends on how long others' jobs take."""

log = logging.getLogger(__name__)


class Meter(Protocol):
    """Counts requests and queued tokens."""

    async def count(self, caller: Caller) -> None:
        """Count a request.

        Raises:
            TooMany: it is one too many; it says when to come back.
        """
        ...

    def admit(self, caller: Caller, tokens: int) -> AbstractAsyncContextManager[None]:
        """Room for a job of about so many tokens, prompt and output, held until the context ends.

        Raises on entering:
            TooMany: there is none; it says when to come back.
            BadRequest: there never will be.
        """
        ...

    def release_after(self, held: AbstractAsyncContextManager[Any], end: Awaitable[object]) -> None:
        """Leave a context that was entered when something has ended: a job that nobody waits for here."""
        ...


class ServerMeter:
    """Counts on the server. Use it as a context: it keeps what is held from being forgotten."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._held: dict[str, set[str]] = {}  # by key: members of its set, see hold.lua
        self._keeping: asyncio.Task[None] | None = None
        self._afterwards: set[asyncio.Task[None]] = set()

    async def count(self, caller: Caller) -> None:
        """See `Meter.count`."""
        limit = caller.limits.requests_per_minute
        if limit is None:
            return
        wait_ms = await self._link.script(RATE, [self._keys.gateway_rate(caller.key_id)], [limit])
        if wait_ms:
            raise TooMany(
                f"this key may send {limit} requests per minute, and has sent them",
                retry_after_s=wait_ms / 1000,
            )

    def admit(self, caller: Caller, tokens: int) -> AbstractAsyncContextManager[None]:
        """See `Meter.admit`."""
        limit = caller.limits.queued_tokens
        return nullcontext() if limit is None else self._holding(caller.key_id, max(tokens, 1), limit)

    @asynccontextmanager
    async def _holding(self, key_id: str, tokens: int, limit: int) -> AsyncGenerator[None]:
        if tokens > limit:
            raise BadRequest(
                f"this asks for about {tokens} tokens, prompt and output, and the key may have {limit} "
                "queued in all; send less at once, or lower max_tokens",
                code="tokens_limit_exceeded",
            )
        member = f"{secrets.token_hex(8)}:{tokens}"
        names = [self._keys.gateway_held(key_id), self._keys.gateway_held_tokens(key_id)]
        held = await self._link.script(HOLD, names, [member, tokens, limit, int(KEEP_S * 1000)])
        if held >= 0:
            raise TooMany(
                f"this key may have {limit} tokens queued, and has {held}; this asks for about {tokens} more",
                retry_after_s=RETRY_AFTER_S,
                code="queued_tokens_exceeded",
            )
        members = self._held.setdefault(key_id, set())
        members.add(member)
        try:
            yield
        finally:
            members.discard(member)
            if not members:
                self._held.pop(key_id, None)
            # Forgotten after a minute anyway where the server can't be told.
            with suppress(ServerError):
                await asyncio.shield(self._link.script(LET_GO, names, [member, tokens]))

    def release_after(self, held: AbstractAsyncContextManager[Any], end: Awaitable[object]) -> None:
        """See `Meter.release_after`."""
        task = asyncio.create_task(_leave_after(held, end))
        self._afterwards.add(task)
        task.add_done_callback(self._afterwards.discard)

    async def __aenter__(self) -> ServerMeter:
        self._keeping = asyncio.create_task(self._keep(), name="gateway-meter")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._afterwards, *([self._keeping] if self._keeping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_S / 3)
            for key_id, members in list(self._held.items()):
                names = [self._keys.gateway_held(key_id), self._keys.gateway_held_tokens(key_id)]
                try:
                    await self._link.script(KEEP, names, [int(KEEP_S * 1000), *members])
                except ServerError as error:
                    log.warning("queued tokens can't be kept: %s", error)


async def _leave_after(held: AbstractAsyncContextManager[Any], end: Awaitable[object]) -> None:
    try:
        with suppress(PenstockError):
            await end
    finally:
        await held.__aexit__(None, None, None)
