"""What the scenarios share: consumer processes to kill, a model that takes its time, a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from penstock.client import Client
from tests.consumer.models import save_model
from tests.recovery.processes import ConsumerProcess


@pytest.fixture
def start() -> Iterator[Callable[..., ConsumerProcess]]:
    """Start consumer processes with the scripted engine; none outlives the test."""
    started: list[ConsumerProcess] = []

    def start(url: str, model: Path, *flags: str, **settings: Any) -> ConsumerProcess:
        started.append(ConsumerProcess.scripted(url, model, *flags, **settings))
        return started[-1]

    yield start
    for process in started:
        process.clean_up()


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Make folders of one model, each with its engine's log: `make_model("first", step_s=0.01)`."""

    def make(name: str, **script: Any) -> Path:
        folder = tmp_path / name / "scripted"  # the last part is the model's name, the same for all
        return save_model(folder, {"step_s": 0.01, "log": str(folder / "requests.log"), **script})

    return make


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    """Slow enough that a kill comes in mid-run."""
    return make_model("model")


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with Client(redis_url) as client:
        yield client
