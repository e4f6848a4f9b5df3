"""An engine that hangs is killed: a death like any other. One that only seems to hang is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.client import Client
from penstock.errors import JobFailed
from penstock.keys import GROUP, Keys
from penstock.messages import Job, SamplingParams
from tests.conftest import Server
from tests.consumer.scripted_engine import logged
from tests.recovery.processes import ConsumerProcess, events_of
from tests.recovery.scripted_jobs import (
    LANE,
    TIMEOUT_S,
    check_all,
    jobs,
    long_jobs,
    requested,
    submit,
    until_ended,
    until_published,
)

ENGINE_TIMEOUT_S = 2.0
POISON = ord("!")
"""What the prompt of a poison ends with."""


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it does."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.05)


async def test_stopped_in_mid_job(
    server: Server, client: Client, model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    process = start(server.url, model, max_num_seqs=16, engine_timeout_s=ENGINE_TIMEOUT_S)
    sent = await submit(client, [*jobs(8, num_tokens=100), *long_jobs(4, num_tokens=100)])
    for one in sent[::2]:
        await until_published(client, one, 2)
    hung = process.engine
    hung.suspend()
    await asyncio.sleep(0.5)  # so that all that it said is published
    with server.client() as redis:
        before = {one.id: events_of(redis, one.id) for one in sent}
    await until_ended(client, sent)
    check_all(server, sent)
    with server.client() as redis:
        for one in sent:
            published = before[one.id]
            assert events_of(redis, one.id)[: len(published)] == published
    assert not hung.is_running()
    requests = logged(model / "requests.log", "request")
    assert [request_id for request_id, _ in requests] == [f"{one.id}/1" for one in sent] * 2
    resumed = dict(requests[len(sent) :])
    assert all(sum(resumed[f"{one.id}/1"].values()) for one in sent[::2]), "they go on from what is published"


async def test_hanging_counts_as_a_death(
    server: Server, client: Client, make_model: Callable[..., Path], start: Callable[..., ConsumerProcess]
) -> None:
    model = make_model("slow", step_s=0.1)
    process = start(server.url, model, max_engine_deaths=2, engine_timeout_s=ENGINE_TIMEOUT_S)
    (one,) = await submit(client, [Job(prompt="any", stream=True, max_attempts=1)])
    await until_published(client, one)
    first = process.engine
    first.suspend()
    await until(lambda: len(requested(model)) == 2)
    assert process.engine != first
    process.engine.suspend()
    with pytest.raises(JobFailed, match="the engine dies when it runs this job"):
        await client.result(one.id, timeout=TIMEOUT_S)
    sent = await submit(client, jobs(3, num_tokens=5))
    await until_ended(client, sent)
    check_all(server, sent)


async def test_a_poison_that_hangs_is_found_among_many(
    server: Server, client: Client, make_model: Callable[..., Path], start: Callable[..., ConsumerProcess]
) -> None:
    """Meanwhile most of the jobs wait for their turn, and no engine is killed for what it was not given."""
    model = make_model("model", poison_tokens=[POISON], hangs=True)
    start(server.url, model, max_num_seqs=16, engine_timeout_s=ENGINE_TIMEOUT_S / 2)
    params = SamplingParams(max_tokens=40)
    healthy = await submit(client, jobs(4))
    (poison,) = await submit(
        client, [Job(prompt="poison!", stream=True, max_attempts=1, sampling_params=params)]
    )
    more = await submit(client, jobs(4))
    with pytest.raises(JobFailed, match="the engine dies when it runs this job"):
        await client.result(poison.id, timeout=TIMEOUT_S)
    await until_ended(client, [*healthy, *more])
    check_all(server, [*healthy, *more])


@pytest.mark.parametrize("with_engine", [True, False], ids=["with its engine", "without its engine"])
async def test_no_engine_is_killed_because_its_consumer_was_stopped(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
    with_engine: bool,
) -> None:
    model = make_model("slow", step_s=0.1)
    process = start(server.url, model, lease_s=60, engine_timeout_s=ENGINE_TIMEOUT_S)
    sent = await submit(client, long_jobs(6, num_tokens=60))
    await until_published(client, sent[0], 2)
    engine = process.engine
    if with_engine:
        process.pause()
    else:
        process.pause_alone()
    await asyncio.sleep(2 * ENGINE_TIMEOUT_S)
    process.resume()
    await until_ended(client, sent)
    check_all(server, sent)
    assert process.engine == engine
    assert sorted(requested(model)) == sorted(f"{one.id}/1" for one in sent)


async def test_a_drain_outlasts_an_engine_that_hangs(
    server: Server, client: Client, model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    process = start(server.url, model, engine_timeout_s=ENGINE_TIMEOUT_S, grace_s=TIMEOUT_S)
    sent = await submit(client, long_jobs(6, num_tokens=100))
    await until_published(client, sent[0], 2)
    process.engine.suspend()
    assert process.drain(TIMEOUT_S) == 0
    check_all(server, sent)


@pytest.mark.parametrize("prompt", ["long job ", "long job " * 8000], ids=["quiet", "with a full socket"])
async def test_a_drain_ends_though_the_engine_hangs(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
    prompt: str,
) -> None:
    script: dict[str, Any] = {"max_model_len": 200_000}
    process = start(server.url, make_model("first", **script), lease_s=60, grace_s=0.5)
    sent = await submit(client, long_jobs(2, num_tokens=200))
    await until_published(client, sent[0], 2)
    hung = process.engine
    hung.suspend()
    more = [Job(prompt=f"{prompt}{n}", sampling_params=SamplingParams(max_tokens=5)) for n in range(20)]
    sent += await submit(client, more)
    with server.client() as redis:
        await until(lambda: redis.xpending(LANE, GROUP)["pending"] == len(sent))
    await asyncio.sleep(1.0)  # so that they are admitted as well, and handed to the engine
    assert process.drain() == 0
    assert not hung.is_running()
    with server.client() as redis:
        assert redis.hgetall(Keys().consumers) == {}
    start(server.url, make_model("second", **script))
    await until_ended(client, sent)
    check_all(server, sent)
