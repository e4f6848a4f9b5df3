"""What dies, and what a client sees of it: nothing lost, nothing doubled, nothing changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from penstock.client import Client
from penstock.errors import ServerFull
from penstock.keys import Keys
from penstock.messages import Job, SamplingParams
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.scripted_engine import logged, token_at
from tests.recovery.processes import ConsumerProcess, check_stream, events_of

LANE = Keys().jobs("standard")
NUM_TOKENS = 40


@pytest.fixture
def start() -> Iterator[Callable[..., ConsumerProcess]]:
    """Start consumer processes with the scripted engine; none outlives the test."""
    started: list[ConsumerProcess] = []

    def start(url: str, model: Path, **settings: Any) -> ConsumerProcess:
        started.append(ConsumerProcess.scripted(url, model, **settings))
        return started[-1]

    yield start
    for process in started:
        process.clean_up()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Slow enough that a kill comes in mid-run."""
    return save_model(tmp_path / "scripted", {"step_s": 0.01, "log": str(tmp_path / "requests.log")})


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with Client(redis_url) as client:
        yield client


def jobs(count: int) -> list[Job]:
    """Every other one streamed, and every fifth with three samples."""
    params = [SamplingParams(max_tokens=NUM_TOKENS, n=3 if n % 5 == 0 else 1) for n in range(count)]
    return [Job(prompt=f"job {n}", stream=n % 2 == 0, sampling_params=params[n]) for n in range(count)]


def expected_texts(n: int) -> list[str]:
    ids = list(f"job {n}".encode())
    return [
        "".join(chr(token_at(ids, position, sample)) for position in range(NUM_TOKENS))
        for sample in range(3 if n % 5 == 0 else 1)
    ]


async def until_terminal(client: Client, ids: list[str], count: int) -> None:
    """Wait until `count` of the jobs have ended."""
    async with asyncio.timeout(30):
        pending = {asyncio.create_task(client.result(job_id)) for job_id in ids}
        ended = 0
        while ended < count:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            ended += len(done)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def check_all(server: Server, ids: list[str]) -> None:
    with server.client() as redis:
        for n, job_id in enumerate(ids):
            done = check_stream(events_of(redis, job_id))
            assert [output.text for output in done.outputs] == expected_texts(n), f"job {n}"
        assert redis.xlen(LANE) == 0


@pytest.mark.parametrize("name", ["", "worker-0"], ids=["lease expires", "same name takes over"])
async def test_kill_of_the_consumer(
    server: Server, client: Client, model: Path, start: Callable[..., ConsumerProcess], name: str
) -> None:
    lease_s = 60 if name else 1.0
    ids = await client.submit_many(jobs(100))
    first = start(server.url, model, name=name, lease_s=lease_s, max_num_seqs=16)
    await until_terminal(client, ids, 30)
    first.kill()
    start(server.url, model, name=name, lease_s=lease_s, max_num_seqs=16)
    await until_terminal(client, ids, len(ids))
    check_all(server, ids)
    requests = logged(model.parent / "requests.log", "request")
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
        ids = await client.submit_many(jobs(60))
        start(server.url, model, lease_s=3.0, max_num_seqs=16)
        await until_terminal(client, ids, 15)
        server.kill()
        await asyncio.sleep(0.5)
        server.start()
        await until_terminal(client, ids, len(ids))
        check_all(server, ids)


async def test_restart_of_the_server_without_its_data(
    make_server: Callable[..., Server], model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    server = make_server()
    async with Client(server.url) as client:
        ids = await client.submit_many(jobs(30))
        start(server.url, model, lease_s=1.0, max_num_seqs=8)
        await until_terminal(client, ids, 4)
        server.kill()
        server.start()
        await asyncio.sleep(0.2)  # let the client see that its connections are gone
        again = await client.submit_many(jobs(10))
        await until_terminal(client, again, len(again))
        check_all(server, again)


async def test_two_consumers_share_and_one_drains(
    server: Server, client: Client, model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    both = [start(server.url, model, max_num_seqs=8) for _ in range(2)]
    ids = await client.submit_many(jobs(80))
    await until_terminal(client, ids, 20)
    assert both[0].drain() == 0
    await until_terminal(client, ids, len(ids))
    check_all(server, ids)
    with server.client() as redis:
        assert len(redis.hgetall(Keys().consumers)) == 1


async def test_a_second_signal_ends_at_once_and_loses_nothing(
    server: Server, client: Client, model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    slow = save_model(model.parent / "slow", {"step_s": 0.1})
    process = start(server.url, slow, max_num_seqs=8)
    ids = await client.submit_many(jobs(8))
    follower = client.stream(ids[0])
    await anext(follower)
    process.process.terminate()
    await asyncio.sleep(0.3)
    assert process.process.poll() is None, "the first signal lets running jobs finish"
    process.process.terminate()
    assert process.process.wait(5) == 0
    start(server.url, save_model(model.parent / "slow", {}))
    await until_terminal(client, ids, len(ids))
    check_all(server, ids)


async def test_what_runs_on_a_full_server_finishes(
    make_server: Callable[..., Server], model: Path, start: Callable[..., ConsumerProcess]
) -> None:
    server = make_server()
    async with Client(server.url) as client:
        start(server.url, model, max_num_seqs=16)
        ids = await client.submit_many(jobs(40))
        await until_terminal(client, ids, 4)
        with server.client() as redis:
            redis.config_set("maxmemory", "1mb")
        with pytest.raises(ServerFull):
            await client.submit(jobs(1)[0])
        await until_terminal(client, ids, len(ids))
        check_all(server, ids)
