"""The pulse: dead consumers go, and those that only had no chance to say that they are alive stay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from consumer.broker import Broker
from penstock.client import Client
from penstock.keys import GROUP, Keys
from penstock.messages import Heartbeat, Job, SamplingParams, encode_heartbeat
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.running import consuming

KEYS = Keys()
LANE = KEYS.jobs("standard")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "scripted")


async def test_the_dead_are_cleared_away_and_their_jobs_run(
    redis: Redis, redis_url: str, model: Path
) -> None:
    async with Client(redis_url) as client:
        job_id = await client.submit(Job(prompt="x", sampling_params=SamplingParams(max_tokens=2)))
        await redis.xgroup_create(LANE, GROUP, "0")
        await redis.xreadgroup(GROUP, "dead.00", {LANE: ">"})
        beat = Heartbeat(model="scripted", phase="ready", at_ms=1, interval_ms=100)
        await redis.hset(KEYS.consumers, "dead.00", encode_heartbeat(beat))
        async with consuming(redis_url, model, lease_s=0.6) as consumer:
            assert (await client.result(job_id, timeout=10)).usage.completion_tokens == 2
            async with asyncio.timeout(10):
                while await redis.hexists(KEYS.consumers, "dead.00"):  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.02)
            names = {row["name"].decode() for row in await redis.xinfo_consumers(LANE, GROUP)}
            assert names <= {consumer._broker.consumer, "-"}


async def test_after_an_outage_the_living_have_time_to_say_so(
    make_server: Callable[..., Server], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the server, all heartbeats are as old as its outage was long."""
    server = make_server("--appendfsync", "always", aof=True)
    sweep, sweeps, swept = Broker.sweep, list[float](), asyncio.Event()

    async def noted(broker: Broker) -> int:
        sweeps.append(time.monotonic())
        swept.set()
        return await sweep(broker)

    monkeypatch.setattr(Broker, "sweep", noted)
    async with consuming(server.url, model, lease_s=2.0), asyncio.timeout(60):
        await swept.wait()
        server.kill()
        await asyncio.sleep(3.0)
        sweeps.clear()
        swept.clear()
        await asyncio.to_thread(server.start)
        started = time.monotonic()
        await swept.wait()
    assert sweeps[0] - started > 0.8
