"""Consumers that are taken for dead and are not: they say nothing, and nothing is doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.client import Client
from penstock.keys import GROUP, Keys
from tests.conftest import Server
from tests.consumer.scripted_engine import logged
from tests.recovery.processes import ConsumerProcess
from tests.recovery.scripted_jobs import (
    LANE,
    Submitted,
    check_all,
    jobs,
    long_jobs,
    requested,
    submit,
    until_ended,
    until_published,
)


@pytest.mark.parametrize("with_engine", [True, False], ids=["with its engine", "without its engine"])
async def test_stopped_past_its_lease_and_continued(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
    with_engine: bool,
) -> None:
    first_model, second_model = make_model("first", step_s=0.05), make_model("second", step_s=0.005)
    zombie = start(server.url, first_model, lease_s=1.0, max_num_seqs=16)
    sent = await submit(client, jobs(12, num_tokens=60))
    await until_published(client, sent[0], 2)
    if with_engine:
        zombie.pause()
    else:
        zombie.pause_alone()
    start(server.url, second_model, lease_s=1.0, max_num_seqs=16)
    await until_ended(client, sent)
    before = results(server, sent)
    zombie.resume()
    await until_it_knows(zombie, first_model, [one.id for one in sent] if with_engine else [])
    assert results(server, sent) == before, "the zombie wrote"
    check_all(server, sent)
    taken: set[str] = set()
    for _ in range(20):  # the other may be quicker, and take them all
        again = await submit(client, jobs(40, num_tokens=10))
        await until_ended(client, again)
        check_all(server, again)
        ids = {request_id for request_id, _ in logged(first_model / "requests.log", "request")}
        if taken := ids & {f"{one.id}/1" for one in again}:
            break
    assert taken, "it works on, for what it claims now"


async def test_continued_while_another_runs_its_jobs(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
) -> None:
    models = make_model("first", step_s=0.05), make_model("second", step_s=0.1)
    settings = {"lease_s": 3.0, "max_num_seqs": 32}
    zombie = start(server.url, models[0], name="first", **settings)
    sent = await submit(client, jobs(12, num_tokens=80))
    await until_published(client, sent[0], 2)
    zombie.pause()
    start(server.url, models[1], name="second", **settings)
    begun: list[str] = []
    async with asyncio.timeout(30):
        while len(begun) < len(sent):
            await asyncio.sleep(0.05)
            begun = requested(models[1])
    assert sorted(begun) == sorted(f"{one.id}/2" for one in sent)
    zombie.resume()
    await until_it_knows(zombie, models[0], [one.id for one in sent])
    with server.client() as redis:
        owners = {row["consumer"] for row in redis.xpending_range(LANE, GROUP, "-", "+", 100)}
    assert {owner.partition(b".")[0] for owner in owners} == {b"second"}, "the zombie took a lease back"
    await until_ended(client, sent)
    check_all(server, sent)
    assert requested(models[1]) == begun
    assert logged(models[1] / "requests.log", "abort") == []


def results(server: Server, sent: list[Submitted]) -> list[list[Any]]:
    """Every result stream, as it is on the server."""
    with server.client() as redis:
        return [redis.xrange(Keys().result(one.id)) for one in sent]


async def until_it_knows(zombie: ConsumerProcess, model: Path, jobs_lost: list[str]) -> None:
    """Wait until its engine was told to abort those jobs, and a renewal is past."""
    async with asyncio.timeout(30):
        while True:
            aborted = {key for ids, _ in logged(model / "requests.log", "abort") for key in ids}
            if {f"{job_id}/1" for job_id in jobs_lost} <= aborted:
                break
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    assert zombie.process.poll() is None


async def test_the_same_name_started_twice(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
) -> None:
    models = make_model("first", step_s=0.05), make_model("second")
    settings = {"name": "twin", "lease_s": 2.0, "max_num_seqs": 8, "lookahead": 0}
    start(server.url, models[0], **settings)
    sent = await submit(client, jobs(60))
    await until_published(client, sent[0], 2)
    start(server.url, models[1], **settings)
    await until_ended(client, sent)
    check_all(server, sent)
    first, second = ({r for r, _ in logged(model / "requests.log", "request")} for model in models)
    # To either: the first may be the faster one to ask, under its new name.
    assert any(not r.endswith("/1") for r in first | second), "what the first had was handed out again"
    assert first
    assert second
    # Both live on under their own names, and both work.
    again = await submit(client, jobs(60))
    await until_ended(client, again)
    check_all(server, again)
    for model in models:
        ids = {r.rpartition("/")[0] for r, _ in logged(model / "requests.log", "request")}
        assert ids & {one.id for one in again}
    with server.client() as redis:
        names = {info["name"] for info in redis.xinfo_consumers(LANE, GROUP)} - {b"-"}
    assert len(names) == 2


async def test_a_wall_clock_that_jumps_changes_nothing(
    server: Server, client: Client, make_model: Callable[..., Path], start: Callable[..., ConsumerProcess]
) -> None:
    models = make_model("first"), make_model("second")
    for model in models:
        start(server.url, model, "--jump-clock", lease_s=2.0, max_num_seqs=8)
    sent = await submit(client, [*jobs(60), *long_jobs(4, 450)])  # longer than two leases
    await until_ended(client, sent)
    check_all(server, sent)
    requests = [r for model in models for r, _ in logged(model / "requests.log", "request")]
    assert sorted(requests) == sorted(f"{one.id}/1" for one in sent), "a lease was lost"


async def test_the_engine_killed_alone_costs_no_lease(
    server: Server, client: Client, make_model: Callable[..., Path], start: Callable[..., ConsumerProcess]
) -> None:
    model = make_model("model", step_s=0.05)
    consumer = start(server.url, model, lease_s=15.0, max_num_seqs=32)
    sent = await submit(client, jobs(12, num_tokens=60))
    await until_published(client, sent[0], 3)
    with server.client() as redis:
        names = {info["name"] for info in redis.xinfo_consumers(LANE, GROUP)}
    consumer.engine.kill()
    await until_ended(client, sent)
    check_all(server, sent)
    with server.client() as redis:
        assert {info["name"] for info in redis.xinfo_consumers(LANE, GROUP)} == names
    requests = logged(model / "requests.log", "request")
    assert {request_id for request_id, _ in requests} == {f"{one.id}/1" for one in sent}
    begun_again = requests[len(sent) :]
    assert len(begun_again) == len(sent)
    for request_id, resumed in begun_again:  # the ones that are not streamed too: it was the engine that died
        assert sum(resumed.values()) > 0, request_id
