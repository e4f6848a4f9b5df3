"""Batches: counts, the done stream, trimming, deletion; the test plays the consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from penstock import (
    BatchCounts,
    BatchExists,
    BatchTaken,
    BatchUnknown,
    Client,
    Expired,
    Failed,
    FinishedRow,
    InvalidJob,
    Job,
    JobFailed,
    JobLost,
    ServerUnavailable,
)
from penstock.messages import Error, encode_event
from tests.conftest import Server
from tests.penstock.support import KEYS, Worker, done, tokens


async def test_rows_end_in_the_done_stream_and_are_counted(client: Client, worker: Worker) -> None:
    batch = await client.create_batch("nightly")
    ids = await batch.submit_many([Job(prompt="a", row=0), Job(prompt="b", row=1), "c"])
    assert await batch.counts() == BatchCounts(total=3, completed=0, failed=0)
    await worker.claim(3)
    await worker.publish(ids[1], "2-0", tokens("xy", 0))
    error = Failed(error=Error(type="engine_error", message="no luck"))
    assert await worker.commit(ids[1], error, count=2, batch="nightly", row=1)
    assert await worker.commit(ids[0], done("A"), batch="nightly", row=0)
    assert await worker.commit(ids[2], done("C"), batch="nightly")

    counts = await batch.counts()
    assert counts == BatchCounts(total=3, completed=2, failed=1)
    assert counts.outstanding == 0
    rows = [row async for row in batch.done(block_s=0)]
    assert [(row.job_id, row.row, row.event) for row in rows] == [
        (ids[1], 1, error),
        (ids[0], 0, done("A")),
        (ids[2], None, done("C")),
    ]
    assert [row async for row in batch.done(after=rows[1].entry_id, block_s=0)] == rows[2:]
    # A row's own stream goes; its id says so.
    assert await client.status(ids[1]) == Expired()
    with pytest.raises(JobLost, match="a batch's row ends in the batch's done stream"):
        await client.result(ids[1], timeout=20)


async def test_done_waits_for_rows(client: Client, worker: Worker) -> None:
    batch = await client.create_batch()
    ids = await batch.submit_many([Job(prompt=str(i), row=i) for i in range(3)])

    async def read() -> list[FinishedRow]:
        rows: list[FinishedRow] = []
        async for row in batch.done():
            rows.append(row)
            if len(rows) == 3:
                break
        return rows

    reading = asyncio.create_task(read())
    await worker.claim(3)
    for row, job_id in enumerate(ids):
        await asyncio.sleep(0.02)
        await worker.commit(job_id, done(), batch=batch.id, row=row)
    assert [row.job_id for row in await reading] == ids


async def test_done_ends_after_a_silence(client: Client) -> None:
    batch = await client.create_batch()
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert [row async for row in batch.done(block_s=0.3)] == []
    assert 0.25 < loop.time() - started < 3
    with pytest.raises(ValueError, match="is not a stream entry's id"):
        await anext(batch.done(after="$"))


async def test_done_survives_a_restart_of_the_server(make_server: Callable[..., Server]) -> None:
    server = make_server("--appendfsync", "always", aof=True)
    async with Client(server.url) as client:
        batch = await client.create_batch()
        [job_id] = await batch.submit_many(["x"])
        reading = asyncio.create_task(anext(batch.done()))
        await asyncio.sleep(0.1)
        server.kill()
        server.start()
        async with Redis.from_url(server.url, protocol=2) as redis:
            worker = Worker(redis)
            await worker.claim()
            await worker.commit(job_id, done(), batch=batch.id)
        assert (await reading).job_id == job_id
        server.kill()
        with pytest.raises(ServerUnavailable):
            await anext(batch.done(block_s=0.3))


async def test_done_of_more_rows_than_one_read_takes(client: Client, redis: Redis) -> None:
    batch = await client.create_batch()
    async with redis.pipeline(transaction=False) as pipe:
        for i in range(1_203):
            fields = {"job_id": f"standard.{i}-0", "row": str(i), "event": encode_event(done())}
            pipe.xadd(KEYS.batch_done(batch.id), fields)
        await pipe.execute()
    assert [row.row async for row in batch.done(block_s=0)] == list(range(1_203))


async def test_trim_takes_what_was_read_and_no_more(client: Client, redis: Redis, worker: Worker) -> None:
    batch = await client.create_batch()
    ids = await batch.submit_many([Job(prompt=str(i), row=i) for i in range(10)])
    await worker.claim(10)
    for row, job_id in enumerate(ids):
        await worker.commit(job_id, done(), batch=batch.id, row=row)
    rows = [row async for row in batch.done(block_s=0)]
    assert await batch.trim(rows[3].entry_id) == 4
    assert await batch.trim(rows[3].entry_id) == 0
    assert [row async for row in batch.done(block_s=0)] == rows[4:]
    assert (await batch.counts()).completed == 10


async def test_a_cancelled_row_is_a_failed_row(client: Client, redis: Redis, worker: Worker) -> None:
    batch = await client.create_batch()
    ids = await batch.submit_many([Job(prompt="a", row=7, custom_id="mine"), Job(prompt="b", stream=True)])
    await worker.claim(2)
    await worker.publish(ids[1], "1-0", tokens("x", 0))
    assert await client.cancel(ids[0])
    assert await client.cancel(ids[1])
    assert await batch.counts() == BatchCounts(total=2, completed=0, failed=2)
    rows = [row async for row in batch.done(block_s=0)]
    error = Error(type="cancelled", message="the job was cancelled")
    assert [(row.job_id, row.row, row.event) for row in rows] == [
        (ids[0], 7, Failed(error=error, custom_id="mine")),
        (ids[1], None, Failed(error=error)),
    ]
    assert not await redis.exists(KEYS.result(ids[0]), KEYS.result(ids[1]))
    assert not await worker.commit(ids[0], done(), batch=batch.id, row=7)
    assert await batch.counts() == BatchCounts(total=2, completed=0, failed=2)


async def test_rows_of_a_deleted_batch_end_on_their_own(client: Client, redis: Redis, worker: Worker) -> None:
    batch = await client.create_batch()
    ids = await batch.submit_many(["a", "b"])
    await batch.delete()
    await worker.claim(2)
    assert await worker.commit(ids[0], done(), batch=batch.id)
    assert await client.cancel(ids[1])
    assert await client.result(ids[0], 10) == done()
    with pytest.raises(JobFailed, match="cancelled"):
        await client.result(ids[1], 10)
    assert not await redis.exists(KEYS.batch(batch.id), KEYS.batch_done(batch.id))
    assert await batch.counts() == BatchCounts(total=0, completed=0, failed=0)


async def test_names_of_batches(client: Client) -> None:
    await client.create_batch("mine")
    with pytest.raises(BatchExists, match="'mine'"):
        await client.create_batch("mine")
    assert (await client.create_batch()).id != (await client.create_batch()).id
    for bad in ("", "a:done", "x" * 65, "a b", "a\n"):
        with pytest.raises(ValueError, match="is not a batch name"):
            client.batch(bad)
        with pytest.raises(InvalidJob, match=r"\$\.batch"):
            await client.submit(Job(prompt="x", batch=bad))


# Drivers


async def test_only_the_last_who_took_a_batch_drives_it(client: Client, worker: Worker) -> None:
    made = await client.create_batch("driven")
    first = await made.take()
    await first.enqueue_rows([Job(prompt="a", row=0)], cursor="", new_cursor="1")
    second = await made.take()
    assert int(second.epoch) > int(first.epoch)
    for late in (
        first.enqueue_rows([Job(prompt="b", row=1)], cursor="1", new_cursor="2"),
        first.trim("9-0"),
        first.delete(),
        first.renew(1.0),
        made.enqueue_rows([Job(prompt="b", row=1)], cursor="1", new_cursor="2"),
    ):
        with pytest.raises(BatchTaken, match="another drives the batch; nothing was changed"):
            await late
    assert await made.counts() == BatchCounts(total=1, completed=0, failed=0)
    assert await second.cursor() == "1"
    await second.enqueue_rows([Job(prompt="b", row=1)], cursor="1", new_cursor="2")
    job_id, _ = await worker.claim(2)
    await worker.commit(job_id, done("A"), batch="driven", row=0)
    (row,) = await second.finished(block_s=0)
    assert await second.trim(row.entry_id) == 1
    await second.delete()
    assert await second.cursor() == ""


async def test_who_drives_a_batch_may_say_how_many_rows_there_will_be(client: Client) -> None:
    begun = await client.batch("told").take(restart=True, expected=7)
    assert await begun.counts() == BatchCounts(total=0, completed=0, failed=0, expected=7)
    assert (await (await client.batch("told").take()).counts()).expected == 7
    assert (await (await client.batch("told").take(restart=True)).counts()).expected is None


async def test_nobody_takes_a_batch_whose_lease_is_alive(client: Client) -> None:
    await client.create_batch("leased")
    first = await client.batch("leased").take(30.0)
    with pytest.raises(BatchTaken) as refused:
        await client.batch("leased").take(30.0)
    assert 0 < refused.value.retry_after_s <= 30.0
    with pytest.raises(BatchTaken):
        await client.batch("leased").take(restart=True)
    assert (await first.take(30.0)).epoch == first.epoch, "its own"
    await first.renew(0.0)
    assert int((await client.batch("leased").take(30.0)).epoch) > int(first.epoch)


async def test_a_batch_that_the_server_lost_is_begun_anew_under_a_later_epoch(
    client: Client, redis: Redis
) -> None:
    with pytest.raises(BatchUnknown):
        await client.batch("lost").take()
    first = await client.batch("lost").take(30.0, restart=True)
    await first.enqueue_rows(["x"], cursor="", new_cursor="1")
    await redis.flushall()
    for late in (first.renew(1.0), first.trim("1-0"), first.take()):
        with pytest.raises(BatchUnknown):
            await late
    await first.delete()  # it is gone: what was wanted
    second = await first.take(30.0, restart=True)
    assert int(second.epoch) > int(first.epoch)
    assert await second.cursor() == ""
    assert await redis.ttl(KEYS.batch("lost")) > 0
    with pytest.raises(BatchTaken):
        await first.trim("1-0")
