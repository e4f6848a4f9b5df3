"""The synchronous twin, from one thread and from many."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from penstock import (
    Batch,
    Client,
    InvalidJob,
    Job,
    JobFailed,
    LaneSettings,
    Leased,
    NoSuchLetter,
    QueueFull,
    ResultTimeout,
    SyncBatch,
    SyncClient,
)
from tests.conftest import Server
from tests.penstock.support import KEYS, Worker, done, tokens


class Player:
    """A consumer in a thread: ends whatever comes, streaming three events where asked to."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._play()))

    async def _play(self) -> None:
        async with redis.asyncio.Redis.from_url(self._url, protocol=2) as connection:
            worker = Worker(connection)
            while not self._stop.is_set():
                for job_id in await worker.claim(50):
                    await worker.publish(job_id, "1-0", tokens("a", 0))
                    await worker.publish(job_id, "2-0", tokens("b", 1))
                    await worker.commit(job_id, done(job_id), count=2)
                await asyncio.sleep(0.01)

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_it_has_the_methods_of_the_asynchronous_client() -> None:
    def shape(cls: type) -> dict[str, list[str]]:
        functions = inspect.getmembers(cls, inspect.isfunction)
        return {n: list(inspect.signature(f).parameters) for n, f in functions if not n.startswith("_")}

    asynchronous = shape(Client)
    asynchronous["close"] = asynchronous.pop("aclose")
    assert shape(SyncClient) == asynchronous
    assert shape(SyncBatch) == shape(Batch)


def test_the_same_key_gives_the_same_job(redis_url: str) -> None:
    with SyncClient(redis_url) as client:
        first = client.submit("x", idempotency_key="a")
        assert client.submit("x", idempotency_key="a", idempotency_ttl_s=60) == first
        keys = [f"k{index}" for index in range(45)]
        ids = client.submit_many(["x"] * 45, chunk=1, idempotency_keys=iter(keys))
        assert client.submit_many(["x"] * 3, idempotency_keys=["k0", "k44", "a"]) == [ids[0], ids[44], first]
        with pytest.raises(ValueError, match="fewer idempotency keys than jobs"):
            client.submit_many(["x"] * 45, chunk=1, idempotency_keys=keys[:44])


def test_lanes_pause_and_dead_letters(redis_url: str) -> None:
    with SyncClient(redis_url) as client:
        assert client.set_lane("alice", weight=2.0, max_jobs=1) == LaneSettings(weight=2.0, max_jobs=1)
        client.submit("x", "alice")
        with pytest.raises(QueueFull, match="the lane holds 1 jobs, its limit is 1"):
            client.submit("x", "alice")
        client.pause("alice")
        client.pause()
        assert client.queue_settings() == LaneSettings(paused=True)
        client.resume()
        alice, standard = client.lanes()
        assert (alice.name, alice.queued, alice.settings.paused) == ("alice", 1, True)
        assert (standard.name, standard.queued, standard.settings) == ("standard", 0, LaneSettings())
        client.resume("alice")
        assert client.set_lane("alice", max_jobs=None) == LaneSettings(weight=2.0)
        assert client.dead_letters() == []
        assert client.drop("1-0") is False
        for call in (client.dead_letter, client.requeue):
            with pytest.raises(NoSuchLetter):
                call("1-0")


def test_submit_result_stream_status_cancel(redis_url: str) -> None:
    with SyncClient(redis_url) as client:
        cancelled = client.submit("x")
        assert client.cancel(cancelled)
        with pytest.raises(JobFailed, match="cancelled"):
            client.result(cancelled, timeout=10)
        with pytest.raises(InvalidJob):
            client.submit("")
        waiting = client.submit("x", lane="idle")
        with pytest.raises(ResultTimeout):
            client.result(waiting, timeout=0.05)
        with Player(redis_url):
            job_id = client.submit(Job(prompt="x", stream=True))
            assert [event_id for event_id, _ in client.stream(job_id)] == ["1-0", "2-0", "2-1"]
            assert [event_id for event_id, _ in client.stream(job_id, after="2-0")] == ["2-1"]
            assert client.result(job_id, timeout=10).text == job_id
            assert not isinstance(client.status(job_id), Leased)
            stream = client.stream(job_id)
            next(stream)
            stream.close()  # left in the middle


def test_many_threads_share_one_client(redis_url: str) -> None:
    with SyncClient(redis_url) as client, Player(redis_url), ThreadPoolExecutor(32) as threads:

        def ask(index: int) -> bool:
            job_id = client.submit(f"job {index}")
            return client.result(job_id, timeout=30).text == job_id

        assert all(threads.map(ask, range(200)))


def test_submit_many_reads_the_iterable_in_the_calling_thread(redis_url: str) -> None:
    with SyncClient(redis_url) as client:

        def jobs() -> Iterator[str]:
            for i in range(25):
                assert threading.current_thread() is threading.main_thread()
                client.submit("from within")  # would hang, were it the loop's thread
                yield f"job {i}"

        assert len(client.submit_many(jobs(), chunk=1)) == 25

        with pytest.raises(InvalidJob) as caught:
            client.submit_many(["x"] * 45 + [""], chunk=1)
        assert len(caught.value.accepted) == 45


def test_batches(redis_url: str, server: Server) -> None:
    with SyncClient(redis_url) as client:
        batch = client.create_batch()
        batch.enqueue_rows(["a", "b"], cursor="", new_cursor="2")
        ids = batch.submit_many(["c"])
        assert batch.cursor() == "2"
        assert client.cancel(ids[0])
        rows = list(batch.done(block_s=0))
        assert [row.job_id for row in rows] == ids
        assert batch.trim(rows[0].entry_id) == 1
        assert client.batch(batch.id).counts().outstanding == 2
        batch.delete()
        with server.client() as plain:
            assert not plain.exists(KEYS.batch(batch.id))


def test_closing_is_clean_and_final(redis_url: str) -> None:
    before = threading.active_count()
    client = SyncClient(redis_url)
    job_id = client.submit("x")
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(client.result, job_id) for _ in range(3)]
        stream = client.stream(job_id)
        reading = threads.submit(next, stream)
        time.sleep(0.1)
        client.close()
        for future in (*waiting, reading):
            with pytest.raises(RuntimeError, match="closed"):
                future.result(timeout=10)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.submit("x")
    assert threading.active_count() == before


def test_a_bad_url_is_an_error_at_once() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match=r"(?i)scheme"):
        SyncClient("localhost:6379")
    assert threading.active_count() == before
