"""The settings under which we use redis-py's connections; each with its reason."""

from __future__ import annotations

import math
import socket
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

REPLY_TIMEOUT_S: Final = 10.0
"""A server that owes a reply for so long is taken for gone; what a read blocks on purpose is not counted.

Long enough for a server that forks, or waits for its disk. Consumers bring it down to a third of their lease:
a connection that died without a word is then found, and the lease renewed over another, before it is over.
"""

CONNECT_TIMEOUT_S: Final = 5.0
"""A connection that is not there after so long is tried anew, rather than after the kernel's two minutes.

A URL's own `socket_connect_timeout` holds instead.
"""

_POOL_KEYWORDS = ("himport_registry", "event_dispatcher", "maint_notifications_config")


def open_pool(server: str | Redis, reply_timeout_s: float) -> ConnectionPool:
    """Make a pool of our own, from a URL or with the connection settings of a given client.

    A `socket_timeout` in a URL shortens the time that a reply may take.
    """
    if isinstance(server, str):
        pool = ConnectionPool.from_url(server, protocol=2, max_connections=2**31)
        reply_timeout_s = min(reply_timeout_s, pool.connection_kwargs.get("socket_timeout") or math.inf)
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
        # redis-py's default repeats a call up to ten times, an enqueue whose reply was lost as well, and is
        # silent meanwhile. Who calls knows what may be repeated, and says that it waits.
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        decode_responses=False,
        # redis-py's default of 5 s fires inside a longer BLOCK; `receive` adds what a read blocks.
        socket_timeout=reply_timeout_s,
        # Its PING before a call would cost a round trip and still not say whether the call arrives.
        health_check_interval=0,
    )
    pool.connection_kwargs.setdefault("socket_connect_timeout", CONNECT_TIMEOUT_S)
    if issubclass(pool.connection_class, Connection):
        pool.connection_kwargs.update(socket_keepalive=True, socket_keepalive_options=_keepalive())
    return pool


def _keepalive() -> dict[int, int]:
    """TCP's probes, after 30 s and then each 5 s, given up after three.

    They keep a connection that idles in the pool known to the routers on its way, and close it when the other
    end is gone, before it is lent to a call. A call under way does not need them: it has its timeout.
    """
    wanted = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    # No system has all four: TCP_KEEPALIVE is macOS's name for TCP_KEEPIDLE.
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}
