"""Gateways that meet at a batch at the worst moment: late writes, half-made batches, two ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from penstock.client import Client
from penstock.errors import BatchTaken
from penstock.keys import NONCE, Keys
from penstock.link import Link
from producer.gateway.batches.creation import BatchRequest, made_batch
from producer.gateway.batches.dispatcher import Dispatcher
from producer.gateway.batches.life import Life
from producer.gateway.batches.objects import BatchObject, BatchRecord, changed, is_batch_id
from producer.gateway.batches.store import OPEN, BatchStore
from producer.gateway.batches.works import Works
from producer.gateway.caller import Caller
from producer.gateway.errors import NotFound
from producer.gateway.files.store import FileStore
from producer.gateway.served import Served
from producer.gateway.storage import Folder
from tests.conftest import Server
from tests.producer.conftest import eventually
from tests.producer.gateway.batching import answers_of, ended, input_of, make_batch, request_line
from tests.producer.gateway.running import serving

KEYS = Keys()
TENANT = "default"


def a_batch(input_file_id: str = "file-none") -> BatchRecord:
    return made_batch(
        BatchRequest(input_file_id=input_file_id, endpoint="/v1/completions"), Caller(), is_strict=False
    )


class Ends:
    """Who is told of ends, and takes time to hear of them."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.is_heard = asyncio.Event()

    async def hear(self, tenant: str, batch: BatchObject) -> None:
        self.told.append(batch.id)
        await self.is_heard.wait()


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest_asyncio.fixture
async def works(redis_url: str, tmp_path: Path, ends: Ends) -> AsyncIterator[Works]:
    """A gateway's, without the gateway."""
    link, storage = Link(redis_url), Folder(tmp_path / "files")
    try:
        async with Client(redis_url) as client:
            served = Served(link, KEYS)
            yield Works(BatchStore(storage), FileStore(storage), client, link, KEYS, served, ends.hear)
    finally:
        await link.aclose()


async def test_an_end_is_told_by_one_gateway_alone_while_it_lives(works: Works, ends: Ends) -> None:
    """The other sees the batch open until all of it is cleared away, and that may take long."""
    record = a_batch()
    works.batches.create(TENANT, record)
    first = asyncio.create_task(Life(works, TENANT, record.batch.id).run())
    await eventually(lambda: ends.told)
    with pytest.raises(BatchTaken):
        await Life(works, TENANT, record.batch.id).run()
    ends.is_heard.set()
    await first
    assert ends.told == [record.batch.id]
    assert works.batches.open_batches() == []
    assert works.batches.find(TENANT, record.batch.id).batch.status == "failed"
    assert not await works.link.command("EXISTS", KEYS.batch(record.batch.id))


async def test_an_end_that_was_not_told_is_told_by_the_next(works: Works, ends: Ends) -> None:
    record = a_batch()
    works.batches.create(TENANT, record)
    first = asyncio.create_task(Life(works, TENANT, record.batch.id).run())
    await eventually(lambda: ends.told)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    ends.is_heard.set()
    await Life(works, TENANT, record.batch.id).run()
    assert ends.told == [record.batch.id] * 2
    assert works.batches.open_batches() == []


class ChangingFolder(Folder):
    """Where something happens right behind a listing."""

    after_listing: Callable[[], None] | None = None

    def names(self, folder: str) -> list[str]:
        found, then, self.after_listing = super().names(folder), self.after_listing, None
        if then is not None:
            then()
        return found


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_a_batch_that_ends_while_it_is_looked_at_is_found(tmp_path: Path, status: str) -> None:
    storage = ChangingFolder(tmp_path)
    store, record = BatchStore(storage), a_batch()
    store.create(TENANT, record)
    if status == "cancelled":
        store.cancel(TENANT, record.batch.id)

    def end() -> None:
        store.end(TENANT, changed(record, status=status))
        store.clear(TENANT, record.batch.id)

    storage.after_listing = end
    assert store.find(TENANT, record.batch.id).batch.status == status


class Killed(Exception):
    pass


class DyingFolder(Folder):
    """Of a gateway that is killed at its second write."""

    left = 1

    def write(self, name: str, data: bytes) -> None:
        if not self.left:
            raise Killed
        self.left -= 1
        super().write(name, data)


async def test_a_batch_that_was_never_made_is_seen_by_nobody(works: Works, tmp_path: Path) -> None:
    record = a_batch()
    with pytest.raises(Killed):
        BatchStore(DyingFolder(tmp_path / "files")).create(TENANT, record)
    store = works.batches
    assert [one.batch.id for one in store.listed(TENANT, None)] == []
    with pytest.raises(NotFound):
        store.find(TENANT, record.batch.id)
    await Life(works, TENANT, record.batch.id).run()
    assert store.open_batches() == [record.batch.id], "its maker may be about to make it"
    old = f"batch_{int((time.time() - 90_000) * 1000):012x}{'0' * 16}"
    assert is_batch_id(old)
    store.storage.write(f"{OPEN}/{old}", TENANT.encode())
    await Life(works, TENANT, old).run()
    assert store.open_batches() == [record.batch.id]


async def test_what_a_killed_gateway_had_cancelled_is_told_as_cancelled_with_the_batch(
    server: Server, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one does not go on with the batch before it has looked whether it is to."""
    folder, store = tmp_path / "gateway", BatchStore(Folder(tmp_path / "gateway" / "files"))
    async with serving(redis_url, folder) as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        batch = await make_batch(client, input_of([request_line(f"c{n}") for n in range(50)]))
        await eventually(lambda: _length(server) == 50)
    store.cancel(TENANT, batch.id)
    async with Client(redis_url) as queue:
        for job_id in _jobs(server):
            assert await queue.cancel(job_id)
    looking = BatchStore.is_cancelling

    def slowly(self: BatchStore, tenant: str, batch_id: str) -> bool:
        time.sleep(0.5)  # a storage that is far away
        return looking(self, tenant, batch_id)

    monkeypatch.setattr(BatchStore, "is_cancelling", slowly)
    async with serving(redis_url, folder) as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        done = await ended(client, batch.id)
        assert done.status == "cancelled"
        _, failed = await answers_of(client, done)
    assert {line["error"] and line["error"]["code"] for line in failed.values()} == {"batch_cancelled"}
    assert len(failed) == 50


async def test_a_driver_that_follows_sends_all_that_was_not_sent(
    server: Server, redis_url: str, tmp_path: Path
) -> None:
    """The lane took half of a chunk, and the first row that it did not take comes after a blank line."""
    folder = tmp_path / "gateway"
    lines = [request_line(f"c{n}") for n in range(4)]
    async with Client(redis_url) as queue:
        await queue.set_lane("standard", max_jobs=2)
        async with (
            serving(redis_url, folder) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client,
        ):
            await make_batch(client, input_of([*lines[:2], "", *lines[2:]]))
            await eventually(lambda: _length(server) == 2)
        await queue.set_lane("standard", max_jobs=None)
        async with serving(redis_url, folder):
            await eventually(lambda: _length(server) == 4)


class _Waiting:
    """In the place of a batch's life: begins and waits."""

    began: list[str] = []
    taken: set[str] = set()
    """Batches that another gateway has."""

    def __init__(self, works: Works, tenant: str, batch_id: str) -> None:
        self._tenant, self._id = tenant, batch_id

    def look(self) -> None:
        pass

    async def run(self) -> None:
        if self._id in self.taken:
            raise BatchTaken("another has it")
        self.began.append(self._tenant)
        await asyncio.Event().wait()


async def test_one_tenants_many_batches_leave_room_for_anothers(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.gateway.batches.dispatcher.Life", _Waiting)
    monkeypatch.setattr(_Waiting, "began", [])
    for tenant in ("greedy",) * 80 + ("modest",):
        works.batches.create(tenant, a_batch())
    async with Dispatcher(works):
        await eventually(lambda: "modest" in _Waiting.began)
    assert len(_Waiting.began) < 80


async def test_a_sweep_that_takes_long_holds_up_no_batch(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeping, end = threading.Event(), threading.Event()

    def sweep(*_: object) -> None:
        sweeping.set()
        assert end.wait(60)

    monkeypatch.setattr(FileStore, "sweep", sweep)
    monkeypatch.setattr("producer.gateway.batches.dispatcher.Life", _Waiting)
    monkeypatch.setattr(_Waiting, "began", [])
    async with Dispatcher(works) as dispatcher:
        try:
            await asyncio.to_thread(sweeping.wait, 10)
            works.batches.create(TENANT, record := a_batch())
            dispatcher.look(record.batch.id)
            await eventually(lambda: _Waiting.began == [TENANT])
        finally:
            end.set()


async def test_what_another_gateway_has_keeps_this_one_from_nothing(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.gateway.batches.dispatcher.Life", _Waiting)
    monkeypatch.setattr("producer.gateway.batches.dispatcher.LOOK_S", 0.01)
    monkeypatch.setattr(_Waiting, "began", [])
    for _ in range(100):
        works.batches.create(TENANT, a_batch())
    monkeypatch.setattr(_Waiting, "taken", set(works.batches.open_batches()[:95]))
    async with Dispatcher(works):
        await eventually(lambda: len(_Waiting.began) == 5)


def _length(server: Server) -> int:
    with server.client() as redis:
        return int(redis.xlen(KEYS.jobs("standard")))


def _jobs(server: Server) -> list[str]:
    """Ids of the jobs that wait."""
    with server.client() as redis:
        entries: Any = redis.xrange(KEYS.jobs("standard"))
    return [f"standard.{entry.decode()}.{fields[NONCE.encode()].decode()}" for entry, fields in entries]
