"""What must not change a batch: gateways and consumers that die or hang, a server that forgets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from penstock.keys import EPOCH, Keys
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.consumer.scripted_engine import logged
from tests.producer.conftest import eventually
from tests.producer.gateway.batching import answers_of, ended, has_output, input_of, make_batch, request_line
from tests.producer.gateway.gateways import GatewayProcess
from tests.producer.gateway.running import serving
from tests.recovery.processes import ConsumerProcess

KEYS = Keys()
ROWS = 1000
BAD = 10


@pytest.fixture
def engine_log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


@pytest.fixture
def scripted(tmp_path: Path, engine_log: Path) -> Path:
    """A model that takes a few seconds for all rows."""
    return save_model(tmp_path / "scripted", {"step_s": 0.08, "log": str(engine_log)})


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Iterator[Callable[[], GatewayProcess]]:
    """Starts gateways that share their files."""
    with ExitStack() as stack:

        def start() -> GatewayProcess:
            gateway = GatewayProcess(redis_url, tmp_path / "gateways")
            stack.callback(gateway.kill)
            return gateway

        yield start


@pytest.fixture
def consumer(redis_url: str, scripted: Path) -> Iterator[Callable[[], ConsumerProcess]]:
    """Starts consumers."""
    with ExitStack() as stack:

        def start() -> ConsumerProcess:
            process = ConsumerProcess.scripted(redis_url, scripted, lease_s=3)
            stack.callback(process.clean_up)
            return process

        yield start


@pytest_asyncio.fixture
async def clients() -> AsyncIterator[Callable[[GatewayProcess], AsyncOpenAI]]:
    made: list[AsyncOpenAI] = []

    def client(gateway: GatewayProcess) -> AsyncOpenAI:
        made.append(AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0))
        return made[-1]

    yield client
    for one in made:
        await one.close()


def rows() -> list[Any]:
    """Good rows, and every hundredth torn."""
    lines: list[Any] = [request_line(f"c{n}", f"prompt {n}") for n in range(ROWS)]
    lines[50::100] = ["{"] * BAD
    return lines


async def assert_whole(client: AsyncOpenAI, batch_id: str) -> None:
    done = await ended(client, batch_id, 90)
    assert done.status == "completed", done
    replies, failed = await answers_of(client, done)
    assert replies.keys() == {f"c{n}" for n in range(ROWS) if n % 100 != 50}
    assert sorted(failed) == list(range(50, ROWS, 100))
    assert {line["error"]["code"] for line in failed.values()} == {"invalid_json_line"}
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": ROWS, "completed": ROWS - BAD, "failed": BAD}
    assert done.usage is not None
    assert done.usage.output_tokens == 2 * (ROWS - BAD)


async def test_gateway_and_consumer_killed_in_mid_batch_are_replaced_by_others(
    start: Callable[[], GatewayProcess],
    consumer: Callable[[], ConsumerProcess],
    clients: Callable[[GatewayProcess], AsyncOpenAI],
    engine_log: Path,
) -> None:
    first, second, worker = start(), start(), consumer()
    client = clients(first.answers())
    batch = await make_batch(client, input_of(rows()))
    seen = await has_output(client, batch.id, 50)
    assert seen.status == "in_progress"
    first.kill()
    client = clients(second.answers())
    await has_output(client, batch.id, 400)
    assert seen.request_counts is not None
    ids = [request_id.split("/")[0] for request_id, _ in logged(engine_log, "request")]
    assert len(ids) == len(set(ids)), "none was run twice"
    worker.clean_up()
    consumer()
    await assert_whole(client, batch.id)


async def test_a_gateway_that_hangs_is_replaced_and_changes_nothing_when_it_wakes(
    start: Callable[[], GatewayProcess],
    consumer: Callable[[], ConsumerProcess],
    clients: Callable[[GatewayProcess], AsyncOpenAI],
    server: Server,
    engine_log: Path,
) -> None:
    """Two drivers at once: both believe that they drive the batch, the server knows who does."""
    first, second = start(), start()
    consumer()
    client, other = clients(first.answers()), clients(second.answers())
    batch = await make_batch(client, input_of(rows()))
    seen = await has_output(client, batch.id, 100)
    before = _epoch(server, batch.id)
    first.pause()
    await eventually(lambda: _epoch(server, batch.id) > before)
    first.resume()
    await assert_whole(other, batch.id)
    assert seen.request_counts is not None
    assert len(logged(engine_log, "request")) == ROWS - BAD
    await assert_whole(client, batch.id)


def _epoch(server: Server, batch_id: str) -> int:
    with server.client() as redis:
        return int(redis.hget(KEYS.batch(batch_id), EPOCH) or 0)


async def test_a_server_flushed_twice_costs_what_was_in_the_queue(
    server: Server, redis_url: str, tmp_path: Path, scripted: Path
) -> None:
    """Files and batches are in the storage, all of them."""
    async with (
        serving(redis_url, tmp_path / "gateway") as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        consuming(redis_url, scripted),
    ):
        batch = await make_batch(client, input_of(rows()))
        for share in (1, 2):
            await has_output(client, batch.id, share * 100)
            with server.client() as redis:
                redis.flushall()
        await assert_whole(client, batch.id)


async def test_a_batch_that_was_begun_by_another_gateway_is_cancelled_whole(
    server: Server, redis_url: str, tmp_path: Path
) -> None:
    """Nobody alive knows the ids of the jobs that are in the queue; another's job stays."""
    folder = tmp_path / "gateway"
    async with serving(redis_url, folder) as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        batch = await make_batch(client, input_of([request_line(f"c{n}") for n in range(700)]))
        await eventually(lambda: _length(server) == 700)
    with server.client() as redis:
        redis.xadd(KEYS.jobs("standard"), {"job": '{"prompt":"another\'s"}'})
    async with serving(redis_url, folder) as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        await client.batches.cancel(batch.id)
        done = await ended(client, batch.id)
        assert done.status == "cancelled"
        _, failed = await answers_of(client, done)
    assert len(failed) == 700
    assert _length(server) == 1


def _length(server: Server) -> int:
    with server.client() as redis:
        return int(redis.xlen(KEYS.jobs("standard")))
