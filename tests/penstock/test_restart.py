"""The server dies, comes back, comes back empty, or does not come back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from penstock import Client, JobLost, ResultTimeout, ServerUnavailable
from penstock.backoff import pauses
from tests.conftest import Server
from tests.penstock.support import Worker

MakeServer = Callable[..., Server]


@pytest.mark.parametrize("tcp", [False, True], ids=["socket", "tcp"])
async def test_waiters_survive_a_killed_server(make_server: MakeServer, tcp: bool) -> None:
    server = make_server("--appendfsync", "always", aof=True, tcp=tcp)
    async with Client(server.url) as client:
        ids = await client.submit_many(["x"] * 20)
        waiting = [asyncio.create_task(client.result(job_id, timeout=40)) for job_id in ids]
        await asyncio.sleep(0.1)
        for _ in range(2):
            server.kill()
            await asyncio.sleep(0.2)
            server.start()
        async with Redis.from_url(server.url, protocol=2) as redis:
            await Worker(redis).serve(20)
        assert [event.text for event in await asyncio.gather(*waiting)] == ids
        assert await client.submit("and on it goes")  # pooled connections that broke are replaced


async def test_a_server_that_comes_back_empty_has_lost_the_job(make_server: MakeServer) -> None:
    server = make_server()
    async with Client(server.url) as client:
        job_id = await client.submit("x")
        waiting = asyncio.create_task(client.result(job_id))  # no timeout: it must end all the same
        await asyncio.sleep(0.1)
        server.kill()
        server.start()
        with pytest.raises(JobLost, match="has lost everything since"):
            await asyncio.wait_for(waiting, 20)


async def test_a_server_that_does_not_come_back(make_server: MakeServer) -> None:
    server = make_server()
    async with Client(server.url) as client:
        job_id = await client.submit("x")
        server.kill()
        started = time.monotonic()
        with pytest.raises(ResultTimeout):
            await client.result(job_id, timeout=0.7)
        assert time.monotonic() - started < 5
        with pytest.raises(ServerUnavailable, match="nothing was sent"):
            await client.submit("x")
        with pytest.raises(ServerUnavailable, match="nothing was sent"):
            await client.submit_many(["x"])


async def test_status_is_patient_while_a_server_restarts(make_server: MakeServer) -> None:
    server = make_server(aof=True)
    async with Client(server.url) as client:
        job_id = await client.submit("x")
        server.stop()
        starter = threading.Timer(0.5, server.start)
        starter.start()
        assert (await client.status(job_id)).__class__.__name__ == "Queued"
        starter.join()


async def test_a_submit_cut_off_says_that_nobody_knows(make_server: MakeServer) -> None:
    server = make_server()
    async with Client(server.url) as client:
        await asyncio.gather(*(client.submit("x") for _ in range(4)))  # connections for what follows
        server.pause()  # the request is sent, and never answered
        submits = [
            asyncio.create_task(client.submit("x")),
            asyncio.create_task(client.submit_many(["x"] * 2_000, chunk=100)),
        ]
        await asyncio.sleep(0.2)
        server.kill()
        for submitting in submits:
            with pytest.raises(ServerUnavailable, match="may or may not have been carried out"):
                await submitting


async def test_submit_many_says_what_was_accepted_before_the_end(make_server: MakeServer) -> None:
    server = make_server("--appendfsync", "always", aof=True)
    async with Client(server.url) as client:
        loop = asyncio.get_running_loop()
        killer = loop.run_in_executor(None, lambda: (time.sleep(0.25), server.kill()))
        with pytest.raises(ServerUnavailable) as caught:
            await client.submit_many((f"{i}" for i in range(5_000_000)), chunk=100)
        await killer
        accepted = caught.value.accepted
        server.start()
        with server.client() as redis:
            kept = redis.xlen("penstock:{default}:jobs:standard")
        assert 0 < len(accepted) <= kept  # what was confirmed is there; more may be


def test_pauses_grow_and_stay_bounded() -> None:
    waits = pauses(0.05, 2.0)
    first = [next(waits) for _ in range(20)]
    assert all(0 < wait <= 2.0 for wait in first)
    assert first[0] <= 0.05 < first[6]
    assert first[-1] >= 1.0
