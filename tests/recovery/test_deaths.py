"""What dies, and what a client sees of it: nothing lost, nothing doubled, nothing changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.client import Client
from penstock.errors import ServerFull
from penstock.keys import Keys
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.scripted_engine import logged
from tests.recovery.processes import ConsumerProcess
from tests.recovery.scripted_jobs import check_all, jobs, submit, until_ended, until_ready


@pytest.mark.parametrize("name", ["", "worker-0"], ids=["lease expires", "same name takes over"])
async def test_kill_of_the_consumer(
    server: Server, client: Client, model: Path, start: Callable[..., ConsumerProcess], name: str
) -> None:
    lease_s = 60 if name else 1.0
    sent = await submit(client, jobs(100))
    first = start(server.url, model, name=name, lease_s=lease_s, max_num_seqs=16)
    await until_ended(client, sent, 30)
    first.kill()
    start(server.url, model, name=name, lease_s=lease_s, max_num_seqs=16)
    await until_ended(client, sent)
    check_all(server, sent)
    requests = logged(model / "requests.log", "request")
    assert len({request_id.rpartition("/")[0] for request_id, _ in requests}) == 100
    assert len(requests) <= 100 + 16 + 8, "only what was held by the dead consumer ran twice"
    assert any(sum(resumed.values()) for _, resumed in requests), (
        "streamed jobs went on from their last event"
    )
    end = time.monotonic() + 5
    while not first.group_is_empty():
        assert time.monotonic() < end, "the engine outlived its consumer"
        await asyncio.sleep(0.05)


async def test_kill_of_the_server_with_its_log_kept(
    make_server: Callable[..., Server], model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    server = make_server("--appendfsync", "always", aof=True)
    async with Client(server.url) as client:
        sent = await submit(client, jobs(60))
        start(server.url, model, lease_s=3.0, max_num_seqs=16)
        await until_ended(client, sent, 15)
        server.kill()
        await asyncio.sleep(0.5)
        server.start()
        await until_ended(client, sent)
        check_all(server, sent)


async def test_restart_of_the_server_without_its_data(
    make_server: Callable[..., Server], model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    server = make_server()
    async with Client(server.url) as client:
        sent = await submit(client, jobs(30))
        start(server.url, model, lease_s=1.0, max_num_seqs=8)
        await until_ended(client, sent, 4)
        server.kill()
        server.start()
        await asyncio.sleep(0.2)  # let the client see that its connections are gone
        again = await submit(client, jobs(10))
        await until_ended(client, again)
        check_all(server, again)


async def test_two_consumers_share_and_one_drains(
    server: Server, client: Client, model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    both = [start(server.url, model, max_num_seqs=8) for _ in range(2)]
    await until_ready(server, 2)
    sent = await submit(client, jobs(80))
    await until_ended(client, sent, 20)
    assert both[0].drain() == 0
    await until_ended(client, sent)
    check_all(server, sent)
    with server.client() as redis:
        assert len(redis.hgetall(Keys().consumers)) == 1


async def test_a_second_signal_ends_at_once_and_loses_nothing(
    server: Server, client: Client, model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    slow = save_model(model.parent / "slow", {"step_s": 0.1})
    process = start(server.url, slow, max_num_seqs=8)
    sent = await submit(client, jobs(8))
    follower = client.stream(sent[0].id)
    await anext(follower)
    process.process.terminate()
    await asyncio.sleep(0.3)
    assert process.process.poll() is None, "the first signal lets running jobs finish"
    process.process.terminate()
    assert process.process.wait(5) == 0
    start(server.url, save_model(model.parent / "slow", {}))
    await until_ended(client, sent)
    check_all(server, sent)


async def test_what_runs_on_a_full_server_finishes(
    make_server: Callable[..., Server], model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    server = make_server()
    async with Client(server.url) as client:
        start(server.url, model, max_num_seqs=16)
        sent = await submit(client, jobs(40))
        await until_ended(client, sent, 4)
        with server.client() as redis:
            redis.config_set("maxmemory", "1mb")
        with pytest.raises(ServerFull):
            await client.submit(jobs(1)[0])
        await until_ended(client, sent)
        check_all(server, sent)
