"""Connections that all examples share: opening them would take longer than an example does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar
from unittest.mock import AsyncMock, patch

import redis

from penstock import Client
from penstock.link import Link

T = TypeVar("T")


@contextlib.contextmanager
def reclaiming_at_once() -> Iterator[None]:
    """Every claim looks for expired leases, not one in a quarter of a second, however young the server is."""
    young = AsyncMock(return_value=False)
    with (
        patch("consumer.broker._RECLAIM_EVERY_S", 0.0),
        patch("consumer.broker.Broker._server_is_young", young),
    ):
        yield


class Connections:
    """To one server: a client's, the consumers', and a plain one that looks at what is there."""

    def __init__(self, url: str) -> None:
        self.server = redis.Redis.from_url(url, protocol=2)
        self.client = Client(url)
        self.link = Link(url)
        self._runner = asyncio.Runner()

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        """Run to the end: rules are one behind the other, their interleaving is the example."""
        return self._runner.run(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.do(self.client.aclose())
        self.do(self.link.aclose())
        self._runner.close()
        self.server.close()
