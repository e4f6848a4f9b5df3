"""A client, and a plain connection with which tests play the consumer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from penstock.client import Client
from tests.penstock.support import Worker


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A plain redis-py client, replies as bytes."""
    async with Redis.from_url(redis_url, protocol=2, socket_timeout=30) as redis:
        yield redis


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    """A client of the session's server."""
    async with Client(redis_url) as client:
        yield client


@pytest.fixture
def worker(redis: Redis) -> Worker:
    """The consumer that a test plays."""
    return Worker(redis)
