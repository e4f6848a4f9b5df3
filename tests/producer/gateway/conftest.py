"""A gateway over the session's server, without and with a consumer behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.producer.gateway.running import serving


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A scripted model's folder; a test may give it another script before it asks for `consumer`."""
    return save_model(tmp_path / "scripted")


@pytest_asyncio.fixture
async def url(redis_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """A gateway without keys."""
    async with serving(redis_url, tmp_path / "gateway") as url:
        yield url


@pytest_asyncio.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A plain client of it."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


@pytest_asyncio.fixture
async def consumer(redis_url: str, model: Path) -> AsyncIterator[None]:
    """A consumer with the scripted engine behind the queue; its model's name is `scripted`."""
    async with consuming(redis_url, model):
        yield
