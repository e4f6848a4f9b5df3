"""The enqueue script and the pipeline that feeds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from redis.asyncio import Redis

from penstock import BatchUnknown, Client, CursorMoved, InvalidJob, Job, ServerError, ServerFull
from penstock.enqueue import CHUNK_BYTES, cut
from penstock.keys import JobId
from penstock.messages import MAX_JOB_BYTES, decode_job
from tests.conftest import Server
from tests.penstock.support import KEYS


async def prompts(redis: Redis, lane: str = "standard") -> list[str | None]:
    """Prompts in the lane's order."""
    entries = await redis.xrange(KEYS.jobs(lane))
    return [decode_job(fields[b"job"]).prompt for _, fields in entries]


async def test_many_jobs_keep_their_order_and_get_their_ids(client: Client, redis: Redis) -> None:
    given = [f"job {i}" for i in range(5_000)]
    ids = await client.submit_many(iter(given), chunk=64)
    assert await prompts(redis) == given
    entries = await redis.xrange(KEYS.jobs("standard"))
    expected = [f"standard.{entry.decode()}.{fields[b'nonce'].decode()}" for entry, fields in entries]
    assert ids == expected
    assert len({JobId.parse(job_id).nonce for job_id in ids}) == len(ids)


async def test_no_jobs_are_no_call(client: Client, redis: Redis) -> None:
    assert await client.submit_many([]) == []
    assert await redis.keys("*") == []
    with pytest.raises(ValueError, match="must be 1 or more"):
        await client.submit_many(["x"], chunk=0)


async def test_a_lane_is_declared_once_and_rings_control_once(client: Client, redis: Redis) -> None:
    for _ in range(3):
        await client.submit("x", lane="tenant-7")
    await client.submit_many(["x", "y"], lane="standard")
    assert await redis.hgetall(KEYS.lanes) == {b"tenant-7": b"{}", b"standard": b"{}"}
    notices = [fields for _, fields in await redis.xrange(KEYS.control)]
    assert notices == [{b"lane": b"tenant-7"}, {b"lane": b"standard"}]


async def test_scripts_flushed_between_chunks_are_sent_again(
    client: Client, redis: Redis, server: Server
) -> None:
    def jobs() -> Iterator[str]:
        for i in range(100):
            if i in (15, 50, 51):
                with server.client() as plain:
                    plain.script_flush()
            yield f"job {i}"

    ids = await client.submit_many(jobs(), chunk=10)
    entries = {entry.decode(): fields for entry, fields in await redis.xrange(KEYS.jobs("standard"))}
    found = [decode_job(entries[JobId.parse(job_id).entry][b"job"]).prompt for job_id in ids]
    assert found == [f"job {i}" for i in range(100)]


async def test_a_bad_job_in_the_middle_names_its_place_and_what_went_before(
    client: Client, redis: Redis
) -> None:
    jobs = [Job(prompt=f"job {i}") for i in range(25)] + [Job(prompt="bad", row=-1)] + [Job(prompt="never")]
    with pytest.raises(InvalidJob, match=r"job 25 of this call: Expected `int` >= 0") as caught:
        await client.submit_many(jobs, chunk=10)
    assert len(caught.value.accepted) == 25
    assert await prompts(redis) == [f"job {i}" for i in range(25)]


async def test_an_iterable_that_fails_leaves_a_usable_client(client: Client, redis: Redis) -> None:
    def jobs() -> Iterator[str]:
        yield from ("a", "b", "c")
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        await client.submit_many(jobs(), chunk=1)
    await client.submit("d")
    assert await prompts(redis) == ["a", "b", "c", "d"]


async def test_a_cancelled_submit_leaves_a_usable_client(client: Client, redis: Redis) -> None:
    for chunks in (0, 1, 7):
        started = asyncio.Event()

        def jobs(size: int = 100 * chunks, started: asyncio.Event = started) -> Iterator[str]:
            for i in range(20_000):
                if i == size:
                    started.set()
                yield f"{i}"

        submitting = asyncio.create_task(client.submit_many(jobs(), chunk=100))
        await started.wait()
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        job_id = await client.submit("after")
        assert (await redis.xrange(KEYS.jobs("standard"), JobId.parse(job_id).entry))[0][1][b"nonce"]


def test_chunks_are_bounded_in_jobs_and_bytes() -> None:
    long = "x" * (CHUNK_BYTES // 4)
    chunks = list(cut([long] * 10 + ["x"] * 10, None, 5))
    assert [len(chunk.jobs) for chunk in chunks] == [3, 3, 3, 5, 5, 1]
    assert [len(chunk.jobs) for chunk in cut(["x" * 2 * CHUNK_BYTES] * 2, None, 5)] == [1, 1]


def test_one_chunk_is_of_one_batch() -> None:
    jobs = [
        Job(prompt="a"),
        Job(prompt="b", batch="x"),
        Job(prompt="c", batch="x"),
        Job(prompt="d", batch="y"),
    ]
    assert [(chunk.batch, len(chunk.jobs)) for chunk in cut(jobs, None, 10)] == [
        (None, 1),
        ("x", 2),
        ("y", 1),
    ]
    with pytest.raises(InvalidJob, match="a row of batch 'y'; it cannot go into batch 'x'"):
        list(cut(jobs[1:], "x", 10))


async def test_the_largest_job_passes_and_a_larger_does_not(client: Client, redis: Redis) -> None:
    frame = len('{"prompt":""}')
    job_id = await client.submit("x" * (MAX_JOB_BYTES - frame))
    assert await redis.xlen(KEYS.jobs("standard")) == 1
    assert job_id
    with pytest.raises(InvalidJob, match=rf"the job has {MAX_JOB_BYTES + 1} bytes; the limit is"):
        await client.submit("x" * (MAX_JOB_BYTES - frame + 1))


async def test_rows_and_cursor_move_together_or_not_at_all(client: Client, redis: Redis) -> None:
    batch = await client.create_batch("nightly")
    assert await batch.cursor() == ""
    ids = await batch.enqueue_rows(
        [Job(prompt="a", row=0), Job(prompt="b", row=1)], cursor="", new_cursor="2"
    )
    assert len(ids) == 2
    with pytest.raises(CursorMoved, match="is at '2', not at ''") as caught:
        await batch.enqueue_rows(["a", "b"], cursor="", new_cursor="2")
    assert (caught.value.expected, caught.value.actual) == ("", "2")
    await batch.enqueue_rows(["c"], cursor="2", new_cursor="3")
    assert await prompts(redis) == ["a", "b", "c"]
    assert await batch.cursor() == "3"
    assert (await batch.counts()).total == 3


async def test_racing_drivers_neither_skip_nor_repeat_a_row(client: Client, redis: Redis) -> None:
    batch = await client.create_batch()

    async def drive() -> None:
        while True:
            cursor = await batch.cursor()
            start = int(cursor or 0)
            if start >= 300:
                return
            rows = [Job(prompt=str(i), row=i) for i in range(start, start + 10)]
            try:
                await batch.enqueue_rows(rows, cursor=cursor, new_cursor=str(start + 10))
            except CursorMoved:
                continue

    await asyncio.gather(*(drive() for _ in range(5)))
    assert await prompts(redis) == [str(i) for i in range(300)]


async def test_refusals_come_before_the_first_write(client: Client, redis: Redis) -> None:
    batch = await client.create_batch()
    for key in (KEYS.jobs("standard"), KEYS.control, KEYS.lanes):
        await redis.set(key, "of another type")
        with pytest.raises(ServerError, match="WRONGTYPE"):
            await batch.submit_many(["x"])
        await redis.delete(key)
        assert await redis.keys("*") == [KEYS.batch(batch.id).encode()]
        assert await redis.hgetall(KEYS.batch(batch.id)) == {b"total": b"0"}
    await batch.delete()
    with pytest.raises(BatchUnknown, match="there is no such batch"):
        await batch.submit_many(["x"])
    assert await redis.keys("*") == []


async def test_a_full_server_refuses_and_keeps_what_it_has(make_server: Callable[..., Server]) -> None:
    server = make_server("--maxmemory", "20mb")
    async with Client(server.url) as client:
        with pytest.raises(
            ServerFull, match=r"MiB are used, enqueues may fill .*; nothing was changed; try again in"
        ) as caught:
            await client.submit_many("x" * 10_000 for _ in range(5_000))
        assert 0.1 <= caught.value.retry_after_s <= 60
        accepted = list(caught.value.accepted)
        with server.client() as plain:
            assert plain.xlen(KEYS.jobs("standard")) == len(accepted) > 100
            plain.config_set("maxmemory", "1mb")  # to the brim, and beyond
        await client.pause()
        await client.set_lane("standard", weight=2, max_jobs=10)
        with server.client() as plain:
            plain.config_set("maxmemory", "20mb")
        assert all(
            [await client.cancel(job_id) for job_id in accepted]
        )  # cancelling frees, and works when full
        await client.set_lane("standard", max_jobs=None)
        await client.submit("there is room again")
