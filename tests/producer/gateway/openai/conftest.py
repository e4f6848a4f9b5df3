"""A talk with a model that says what it is told to say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.producer.gateway.openai.talking import Talk, talking


@pytest_asyncio.fixture
async def talk(redis_url: str, tmp_path: Path) -> AsyncIterator[Talk]:
    """The model says `Hello there, friend.`"""
    async with talking(redis_url, tmp_path, {"says": "Hello there, friend."}) as talk:
        yield talk
