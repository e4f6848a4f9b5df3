"""Connections of one client to one server.

Nothing here is ever sent twice: redis-py's own retries are off, because they would repeat an enqueue whose
reply was lost. Who knows that a request may be repeated, repeats it. A connection that breaks costs the calls
that were under way on it, and none after them: what lay idle meanwhile is opened anew before it is used.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from penstock.backoff import pauses
from penstock.command import Argument, pack
from penstock.errors import ServerUnavailable
from penstock.pool import REPLY_TIMEOUT_S, open_pool
from penstock.refusals import UNSENT, in_our_words, is_demoted
from penstock.scripts import Script

T = TypeVar("T")

BLOCK_MS: Final = 5000
"""Longest time that one of our reads blocks on the server."""

MAX_CALLS: Final = 16
"""Calls of one client that are under way at once; more wait their turn."""


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _check_cancelled(before: int) -> None:
    """Raise a cancellation that arrived since there were `before`, and was swallowed.

    redis-py connects and sends inside `asyncio.wait_for`, which before Python 3.12 drops a cancellation that
    arrives in the same moment as the result.
    """
    if _cancellations() > before:
        raise asyncio.CancelledError


async def send(connection: AbstractConnection, *args: Argument) -> None:
    """Send one command."""
    before = _cancellations()
    await connection.send_packed_command(pack(args))
    try:
        _check_cancelled(before)
    except asyncio.CancelledError:
        await connection.disconnect(nowait=True)  # its reply is on its way, for whoever comes next
        raise


async def receive(connection: AbstractConnection, timeout_s: float | None = None) -> Any:
    """Read one reply; an error reply is raised as redis-py's exception.

    Args:
        timeout_s: infinite for a caller with a time limit of its own; by default the connection's.
    """
    return await cast("Callable[..., Any]", connection.read_response)(timeout=timeout_s)  # typed in part


async def request(connection: AbstractConnection, *args: Argument) -> Any:
    """Send one command and read its reply, as bytes, ints and lists of them."""
    await send(connection, *args)
    return await receive(connection)


class Link:
    """Connections to one server. Safe to use from many tasks of one event loop."""

    def __init__(self, server: str | Redis, reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        """Connect lazily.

        Args:
            server: a `redis://`, `rediss://` or `unix://` URL, or a client of redis-py's asyncio kind whose
                connection settings are copied; its own connections are not used.
            reply_timeout_s: see `penstock.pool`; a URL's shorter `socket_timeout` holds instead.
        """
        self._pool = open_pool(server, reply_timeout_s)
        self._turns = asyncio.Semaphore(MAX_CALLS)
        self._closed = False
        self._breaks = 0  # how often a connection broke, and how often it had when each was last used
        self._breaks_seen: WeakKeyDictionary[AbstractConnection, int] = WeakKeyDictionary()
        self._read_limits: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[AbstractConnection, None]:
        """Lend a connection that is known to be up; for blocking reads and pipelines.

        Raises:
            ServerUnavailable: no connection could be made; nothing was sent.
            RuntimeError: the link is closed.
        """
        if self._closed:
            raise RuntimeError("the client is closed")
        if _cancellations():
            # One may be pending, asked for while this task computed: the pool looks at the connection under a
            # timeout of 0 s, which would take it for its own.
            await asyncio.sleep(0)
        before = _cancellations()
        try:
            connection = await self._pool.get_connection()
        except (redis_errors.RedisError, OSError) as error:
            self._breaks += 1
            self._note(error)
            raise in_our_words(error, UNSENT) from error
        try:
            await self._renew(connection)
            _check_cancelled(before)
            yield connection
        except (ServerUnavailable, redis_errors.RedisError, OSError) as error:
            if is_demoted(error):
                await connection.disconnect(nowait=True)
            if not connection.is_connected:
                self._breaks += 1
            self._note(error)
            raise
        finally:
            self._breaks_seen[connection] = self._breaks
            await self._pool.release(connection)

    async def _renew(self, connection: AbstractConnection) -> None:
        """Open a connection anew that has idled since before another one broke.

        A server that went away without a word (a pulled cable, a router that forgot) leaves the whole pool
        looking well, and every connection in it would cost a call and a timeout.
        """
        if self._breaks_seen.get(connection, self._breaks) == self._breaks:
            return
        try:
            await connection.disconnect(nowait=True)
            await connection.connect()
        except (redis_errors.RedisError, OSError) as error:
            raise in_our_words(error, UNSENT) from error

    def _note(self, error: Exception) -> None:
        """End every blocking read where a call on another connection met nothing but silence, or a replica.

        Their connections may be as dead as that one, which they would find out seconds later, or lead to a
        server that they should leave. Reading takes nothing from the server, so they are simply repeated.
        """
        if isinstance(error.__cause__ or error, redis_errors.TimeoutError) or is_demoted(error):
            for limit in self._read_limits:
                if not limit.expired():
                    limit.reschedule(asyncio.get_running_loop().time())

    async def read(self, connection: AbstractConnection, *args: Argument, blocks_ms: int) -> Any:
        """Run a read that blocks on the server for up to `blocks_ms`, on a connection lent by this link.

        Raises:
            RedisError, OSError: as from redis-py.
        """
        await send(connection, *args)
        limit = asyncio.timeout(blocks_ms / 1000 + (connection.socket_timeout or REPLY_TIMEOUT_S))
        try:
            async with limit:
                self._read_limits.add(limit)
                # Not redis-py's own time limit, which makes a late reply look like an empty one.
                return await receive(connection, math.inf)
        except TimeoutError:
            raise redis_errors.TimeoutError("a blocking read is not answered") from None
        finally:
            self._read_limits.discard(limit)

    async def command(self, *args: Argument) -> Any:
        """Run one command that does not block, once.

        Raises:
            ServerUnavailable: the message says whether it may have been carried out.
            ServerError: the server refuses it.
        """
        async with self._turns, self.connection() as connection:
            try:
                return await request(connection, *args)
            except (redis_errors.RedisError, OSError) as error:
                raise in_our_words(error) from error

    async def blocking(self, *args: Argument) -> Any:
        """Run one read that may block on the server, for as long as its own BLOCK says, outside the limit on
        calls under way.

        Raises:
            ServerError: as `command`.
        """
        blocks_ms = int(args[args.index("BLOCK") + 1]) if "BLOCK" in args else 0
        async with self.connection() as connection:
            try:
                return await self.read(connection, *args, blocks_ms=blocks_ms)
            except (redis_errors.RedisError, OSError) as error:
                raise in_our_words(error) from error

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script, once: by digest, or by source where the server has not seen it yet.

        Raises:
            ServerError: as `command`.
        """
        async with self._turns, self.connection() as connection:
            try:
                try:
                    return await request(connection, "EVALSHA", script.sha, len(keys), *keys, *args)
                except redis_errors.NoScriptError:
                    return await request(connection, "EVAL", script.source, len(keys), *keys, *args)
            except (redis_errors.RedisError, OSError) as error:
                raise in_our_words(error) from error

    async def patiently(self, call: Callable[[], Awaitable[T]], patience_s: float = 5.0) -> T:
        """Repeat an idempotent call while the server is unavailable, with growing pauses.

        Raises:
            ServerUnavailable: it still is after `patience_s` seconds.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_s
        for pause in pauses():
            try:
                return await call()
            except ServerUnavailable:
                if loop.time() + pause > end:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    async def aclose(self) -> None:
        """Close all connections, those in use as well."""
        self._closed = True
        await self._pool.aclose()
