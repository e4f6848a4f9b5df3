"""Consumers in the test's own event loop, with the scripted engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from consumer.broker import Broker
from consumer.consumer import Consumer
from consumer.settings import Settings
from engine.config import EngineConfig
from penstock.telemetry.tracing import Tracing

SCRIPTED_ENGINE = [sys.executable, "-m", "tests.consumer.scripted_engine"]


def make_consumer(
    url: str,
    model: Path,
    *,
    max_num_seqs: int = 64,
    broker_type: type[Broker] = Broker,
    tracing: Tracing | None = None,
    **settings: Any,
) -> Consumer:
    """A consumer of the queue at `url` whose engine is the script in `model`."""
    engine = EngineConfig(model=str(model), max_num_seqs=max_num_seqs)
    whole = Settings(engine=engine, redis=url, **settings)
    return Consumer(whole, engine_command=SCRIPTED_ENGINE, broker_type=broker_type, tracing=tracing)


@asynccontextmanager
async def consuming(url: str, model: Path, **settings: Any) -> AsyncIterator[Consumer]:
    """Run a consumer beside the body, and drain it at the end."""
    consumer = make_consumer(url, model, **settings)
    task = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        await asyncio.wait_for(task, 20)
