"""redis-py's errors in our own words: what is said of the request, and whether trying again may help."""

from __future__ import annotations

from typing import Final

from redis import exceptions as redis_errors

from penstock.errors import (
    BatchTaken,
    BatchUnknown,
    PenstockError,
    QueueFull,
    ServerError,
    ServerFull,
    ServerUnavailable,
)

UNSENT: Final = "nothing was sent"
_UNKNOWN: Final = "the request may or may not have been carried out"
_REFUSED: Final = "nothing was changed"

_PASSING = (
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
)
_PASSING_CODES: Final = (
    "READONLY",  # a primary that became a replica, in a failover
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "UNBLOCKED",  # what a blocked read is told when its server becomes a replica
    "BUSY",  # a script of somebody's runs for seconds
    "LOADING",
    "MISCONF",  # the disk is full, and a snapshot failed
    "NOREPLICAS",  # min-replicas-to-write
)
"""Codes of error replies that pass without anyone changing the request. A script's error has them inside."""


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


def is_demoted(error: Exception) -> bool:
    """Whether the server is a replica now: its name may lead elsewhere by now, the connection does not."""
    reply = error.__cause__ or error
    return isinstance(reply, redis_errors.ReadOnlyError) or "READONLY " in str(reply)


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
    if words.startswith("TAKEN "):
        left_s = int(words.split()[2]) / 1000
        return BatchTaken(f"another drives the batch; {_REFUSED}", left_s)
    if words.startswith(("QUEUEFULL ", "MEMORYFULL ")):
        return _no_room(words)
    if "OOM command not allowed" in words:
        return _full()
    passing = isinstance(error, _PASSING) or any(f"{code} " in words for code in _PASSING_CODES)
    if passing:
        return ServerUnavailable(f"the server does not serve this now: {words}; {_REFUSED}")
    return ServerError(f"the server refuses: {words}")
