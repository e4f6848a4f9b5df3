"""Two who want the same thing at once: one of them gets it, and everybody sees which."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.client import Client
from penstock.errors import JobFailed
from penstock.messages import Done, Job, SamplingParams
from tests.conftest import Server
from tests.consumer.running import consuming
from tests.recovery.processes import ConsumerProcess, check_stream, events_of, terminal_events
from tests.recovery.scripted_jobs import (
    Submitted,
    check_all,
    check_nothing_is_left,
    requested,
    submit,
    until_ended,
    until_ready,
)


def short_jobs(count: int, num_tokens: int = 8) -> list[Job]:
    """Over within a few steps; every other one streamed."""
    params = SamplingParams(max_tokens=num_tokens)
    return [Job(prompt=f"short {n}", stream=n % 2 == 0, sampling_params=params) for n in range(count)]


async def test_two_consumers_and_few_jobs(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
) -> None:
    models = make_model("first", step_s=0.001), make_model("second", step_s=0.001)
    for model in models:
        start(server.url, model, lease_s=30.0)
    await until_ready(server, 2)
    sent: list[Submitted] = []
    for round_ in range(60):
        few = await submit(client, short_jobs(1 + round_ % 3, 2))
        await until_ended(client, few)
        sent += few
    check_all(server, sent)
    requests = [request_id for model in models for request_id in requested(model)]
    assert sorted(requests) == sorted(f"{one.id}/1" for one in sent), "each was handed out once"


async def cancel_or_end(client: Client, one: Submitted, delay_s: float) -> bool:
    """Cancel after a while; whether that came first. What the client hears must agree."""
    waiting = asyncio.create_task(client.result(one.id, 20))
    await asyncio.sleep(delay_s)
    cancelled = await client.cancel(one.id)
    (heard,) = await asyncio.gather(waiting, return_exceptions=True)
    if cancelled:
        assert isinstance(heard, JobFailed), f"the client that cancelled was told that it did; {heard}"
        assert heard.error.type == "cancelled"
    else:
        assert isinstance(heard, Done), f"the client that cancelled was told that it came too late; {heard}"
    return cancelled


async def test_cancel_and_commit(server: Server, client: Client, make_model: Callable[..., Path]) -> None:
    rng = random.Random(0)
    model = make_model("model", step_s=0.002)
    outcomes: list[bool] = []
    async with consuming(server.url, model, coalesce_ms=0):
        warm = await submit(client, short_jobs(1))
        await until_ended(client, warm)
        for round_ in range(60):
            if round_ >= 15 and {True, False} == set(outcomes):
                break
            sent = await submit(client, short_jobs(20))
            delays = [rng.uniform(0, 0.1 * (1 + round_ // 15)) for _ in sent]  # wider on a slow machine
            outcomes += await asyncio.gather(
                *(cancel_or_end(client, one, delay) for one, delay in zip(sent, delays, strict=True))
            )
            with server.client() as redis:
                for one in sent:
                    assert terminal_events(events_of(redis, one.id)) == 1
    assert {True, False} == set(outcomes)
    with server.client() as redis:
        check_nothing_is_left(redis)


async def test_deadline_and_commit(server: Server, client: Client, make_model: Callable[..., Path]) -> None:
    rng = random.Random(0)
    heard: list[Done | BaseException] = []
    sent: list[Submitted] = []
    async with consuming(server.url, make_model("model", step_s=0.002)):
        await until_ended(client, await submit(client, short_jobs(1)))
        for round_ in range(60):
            if round_ >= 15 and {True, False} == {isinstance(one, Done) for one in heard}:
                break
            most = 0.1 * (1 + round_ // 15)  # wider on a slow machine
            hurried = [
                msgspec.structs.replace(job, deadline_s=rng.uniform(0.005, most)) for job in short_jobs(20)
            ]
            some = await submit(client, hurried)
            heard += await asyncio.gather(*(client.result(j.id, 20) for j in some), return_exceptions=True)
            sent += some
    failures = [one for one in heard if isinstance(one, JobFailed)]
    assert {failed.error.type for failed in failures} == {"deadline_exceeded"}
    assert 0 < len(failures) < len(sent)
    with server.client() as redis:
        for one, end in zip(sent, heard, strict=True):
            events = events_of(redis, one.id)
            assert terminal_events(events) == 1
            if isinstance(end, Done):
                assert [output.text for output in check_stream(events).outputs] == one.answer
        check_nothing_is_left(redis)


async def test_two_who_cancel_at_once(
    server: Server, client: Client, make_model: Callable[..., Path]
) -> None:
    # Long enough, 20 s, that none ends before it is cancelled, however slow the machine.
    model = make_model("model", step_s=0.05)
    async with consuming(server.url, model), Client(server.url) as other:
        await until_ended(client, await submit(client, short_jobs(1)))
        sent = await submit(client, short_jobs(60, 400))
        for one in sent:
            both = await asyncio.gather(client.cancel(one.id), other.cancel(one.id))
            assert sorted(both) == [False, True]
        with server.client() as redis:
            for one in sent:
                assert terminal_events(events_of(redis, one.id)) == 1
            check_nothing_is_left(redis)
        # The places of those that were running are free again.
        await until_ended(client, again := await submit(client, short_jobs(10)))
        check_all(server, again)


async def test_submits_of_one_key_at_once(
    server: Server, client: Client, make_model: Callable[..., Path]
) -> None:
    model = make_model("model", step_s=0.001)
    async with Client(server.url) as other, consuming(server.url, model):
        sent: list[Submitted] = []
        for n, job in enumerate(short_jobs(60, 3)):
            # Some come while it is queued, some while it runs, some once it has ended.
            calls = [
                submit_later(one, job, f"key-{n}", delay) for one in (client, other) for delay in range(4)
            ]
            (job_id,) = set(await asyncio.gather(*calls))
            sent.append(Submitted(job_id, job))
        await until_ended(client, sent)
        check_all(server, sent)
    assert sorted(requested(model)) == sorted(f"{one.id}/1" for one in sent), "a key was enqueued twice"


async def submit_later(client: Client, job: Job, key: str, delay: int) -> str:
    """Submit after about so many steps of the engine."""
    await asyncio.sleep(0.002 * delay)
    return await client.submit(job, idempotency_key=key)
