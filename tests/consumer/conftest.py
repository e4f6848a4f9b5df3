"""A raw asynchronous connection to the session's server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from redis.asyncio import Redis


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """The session's server, empty, as bytes come from it."""
    async with Redis.from_url(redis_url, protocol=2) as client:
        yield client
