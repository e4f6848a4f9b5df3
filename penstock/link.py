"""Connections of one client to one server, and redis-py's errors in our own words.

Nothing here is ever sent twice: redis-py's own retries are off, because they would repeat an enqueue whose
reply was lost. Who knows that a request may be repeated, repeats it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast

from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from penstock.backoff import pauses
from penstock.command import Argument, pack
from penstock.errors import (
    BatchUnknown,
    PenstockError,
    QueueFull,
    ServerError,
    ServerFull,
    ServerUnavailable,
)
from penstock.scripts import Script

T = TypeVar("T")

BLOCK_MS: Final = 5000
"""Longest time that one of our reads blocks on the server."""

SOCKET_TIMEOUT_S: Final = 20.0
"""A server silent for so long is taken for gone; well above `BLOCK_MS`."""

MAX_CALLS: Final = 16
"""Calls of one client that are under way at once; more wait their turn."""

_UNSENT: Final = "nothing was sent"
_UNKNOWN: Final = "the request may or may not have been carried out"
_REFUSED: Final = "nothing was changed"

_PASSING = (
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
)
_PASSING_CODES: Final = ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "LOADING")

_POOL_KEYWORDS = ("himport_registry", "event_dispatcher", "maint_notifications_config")


def _open_pool(server: str | Redis) -> ConnectionPool:
    """Make a pool of our own, from a URL or with the connection settings of a given client."""
    if isinstance(server, str):
        pool = ConnectionPool.from_url(server, protocol=2, max_connections=2**31)
    else:
        theirs = server.connection_pool
        kwargs: dict[str, Any] = {
            key: value
            for key, value in theirs.connection_kwargs.items()
            if key not in _POOL_KEYWORDS and not key.startswith(("maint", "orig_", "oss_"))
        }
        kwargs["protocol"] = 2
        pool = ConnectionPool(theirs.connection_class, max_connections=2**31, **kwargs)
    # Set last: options in a URL win over keyword arguments, and these are not the caller's to choose.
    pool.connection_kwargs.update(
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        decode_responses=False,
        socket_timeout=SOCKET_TIMEOUT_S,
        health_check_interval=0,
    )
    pool.connection_kwargs.setdefault("socket_connect_timeout", 5.0)
    return pool


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


async def receive(connection: AbstractConnection) -> Any:
    """Read one reply; an error reply is raised as redis-py's exception."""
    return await cast("Callable[[], Any]", connection.read_response)()  # typed in part


async def request(connection: AbstractConnection, *args: Argument) -> Any:
    """Send one command and read its reply, as bytes, ints and lists of them."""
    await send(connection, *args)
    return await receive(connection)


def in_our_words(error: Exception, unless_known: str = _UNKNOWN) -> PenstockError:
    """Give the exception of ours for one of redis-py's.

    Args:
        unless_known: what is to be said of the request where the connection broke.
    """
    if isinstance(error.__cause__, redis_errors.RedisError):
        error = error.__cause__  # redis-py wraps what went wrong while it connected
    words = str(error).rstrip(".")
    match error:
        case PenstockError():
            return error
        case redis_errors.AuthenticationError() | redis_errors.AuthorizationError():
            return ServerError(f"the server refuses the credentials: {words}")
        case redis_errors.BusyLoadingError():
            return ServerUnavailable(f"the server is still loading its data; {_REFUSED}")
        case redis_errors.ConnectionError() | redis_errors.TimeoutError() | OSError():
            return ServerUnavailable(f"{words}; {unless_known}")
        case redis_errors.OutOfMemoryError():
            return _full()
        case _:
            return _refusal(error, words)


def _full() -> ServerFull:
    return ServerFull(f"the server has no memory left; {_REFUSED}")


def _no_room(words: str) -> QueueFull:
    """The enqueue script's refusal: `CODE used limit ms`."""
    code, used, limit, hint_ms = words.split()[:4]
    retry_after_s = int(hint_ms) / 1000
    again = f"{_REFUSED}; try again in {retry_after_s:g} s"
    if code == "QUEUEFULL":
        return QueueFull(f"the lane holds {used} jobs, its limit is {limit}; {again}", retry_after_s)
    mib = [round(int(size) / 2**20) for size in (used, limit)]
    words = f"the server's memory is full: {mib[0]} MiB are used, enqueues may fill {mib[1]}"
    return ServerFull(f"{words}; {again}", retry_after_s)


def _refusal(error: Exception, words: str) -> PenstockError:
    """An error reply: by redis-py's type, or by its words, as Redis 6.2 wraps the errors of a script."""
    if words.startswith("NOBATCH"):
        return BatchUnknown(words.removeprefix("NOBATCH "))
    if words.startswith(("QUEUEFULL ", "MEMORYFULL ")):
        return _no_room(words)
    if "OOM command not allowed" in words:
        return _full()
    passing = isinstance(error, _PASSING) or any(f"{code} " in words for code in _PASSING_CODES)
    if passing:
        return ServerUnavailable(f"the server does not serve this now: {words}; {_REFUSED}")
    return ServerError(f"the server refuses: {words}")


class Link:
    """Connections to one server. Safe to use from many tasks of one event loop."""

    def __init__(self, server: str | Redis) -> None:
        """Connect lazily.

        Args:
            server: a `redis://`, `rediss://` or `unix://` URL, or a client of redis-py's asyncio kind whose
                connection settings are copied; its own connections are not used.
        """
        self._pool = _open_pool(server)
        self._turns = asyncio.Semaphore(MAX_CALLS)
        self._closed = False

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
            raise in_our_words(error, _UNSENT) from error
        try:
            _check_cancelled(before)
            yield connection
        finally:
            await self._pool.release(connection)

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
        """Run one command that blocks on the server, outside the limit on calls under way.

        Raises:
            ServerError: as `command`.
        """
        async with self.connection() as connection:
            try:
                return await request(connection, *args)
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
