"""Many followers of one client over one connection."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest
from redis.asyncio import Redis

from penstock import Client, Job, ServerError
from penstock.follower import READ_COUNT, Entry, Follower, Subscription, event_of, parse_entry_id
from penstock.link import Link
from tests.penstock.support import KEYS, Worker, done, tokens


async def test_a_thousand_followers_hold_one_connection(client: Client, redis: Redis, worker: Worker) -> None:
    ids = await client.submit_many(f"job {i}" for i in range(1_000))
    waiting = [asyncio.create_task(client.result(job_id, timeout=50)) for job_id in ids]
    reading = 0
    async with asyncio.timeout(30):
        while not reading:
            await asyncio.sleep(0.05)
            reading = sum(c["cmd"] == "xread" for c in await redis.client_list())
    assert reading == 1
    await worker.serve(1_000)
    assert [event.text for event in await asyncio.gather(*waiting)] == ids


async def test_a_thousand_streams_get_each_event_once(client: Client, worker: Worker) -> None:
    ids = await client.submit_many(Job(prompt=f"job {i}", stream=True) for i in range(1_000))

    async def follow(job_id: str) -> list[str]:
        return [event_id async for event_id, _ in client.stream(job_id)]

    following = [asyncio.create_task(follow(job_id)) for job_id in ids]
    assert len(await worker.claim(1_000)) == 1_000
    for count in (1, 2, 3):
        for job_id in ids:
            assert await worker.publish(job_id, f"{count}-0", tokens("a", count - 1))
    for job_id in ids:
        assert await worker.commit(job_id, done(), count=3)
    assert await asyncio.gather(*following) == [["1-0", "2-0", "3-0", "3-1"]] * 1_000


async def test_a_new_follower_wakes_the_read_under_way(client: Client, worker: Worker) -> None:
    idle, *ids = await client.submit_many(["x"] * 21)
    waiting = asyncio.create_task(client.result(idle))
    await asyncio.sleep(0.1)
    assert await worker.claim() == [idle]
    await worker.serve(20)
    started = time.monotonic()
    for job_id in ids:  # each joins while a read blocks; unwoken, each would take seconds
        assert (await client.result(job_id, timeout=10)).text == job_id
    assert time.monotonic() - started < 4
    waiting.cancel()


async def test_where_waking_is_refused_reads_are_short(redis_url: str, redis: Redis, worker: Worker) -> None:
    rules = ("on", ">secret", "~penstock:*", "+@all", "-client|unblock")
    if int((await redis.info("server"))["redis_version"].split(".")[0]) < 7:
        rules = ("on", ">secret", "~penstock:*", "+@all", "-client", "+client|id", "+client|setinfo")
    await redis.execute_command("ACL", "SETUSER", "narrow", *rules)
    try:
        url = redis_url.replace("unix://", "unix://narrow:secret@")
        async with Client(url) as client:
            idle, *ids = await client.submit_many(["x"] * 6)
            waiting = asyncio.create_task(client.result(idle))
            await asyncio.sleep(0.1)
            assert await worker.claim() == [idle]
            await worker.serve(5)
            for job_id in ids:
                assert (await client.result(job_id, timeout=10)).text == job_id
            waiting.cancel()
    finally:
        await redis.execute_command("ACL", "DELUSER", "narrow")


async def test_who_joins_during_a_read_misses_nothing(redis_url: str, redis: Redis, worker: Worker) -> None:
    """That read is somebody's who is further on: what it brings comes too early for the new one."""
    await redis.execute_command("ACL", "SETUSER", "narrow", "on", ">s", "~penstock:*", "+@all", "-client")
    try:
        async with Client(redis_url.replace("unix://", "unix://narrow:s@")) as client:  # nobody wakes a read
            job_id = await client.submit(Job(prompt="x", stream=True))
            assert await worker.claim() == [job_id]
            first = client.stream(job_id)
            for count in range(1, 11, 2):
                assert await worker.publish(job_id, f"{count}-0", tokens("a", count - 1))
                assert (await anext(first))[0] == f"{count}-0"
                await asyncio.sleep(0.01)  # the next read is under way
                joining = asyncio.create_task(first_id(client, job_id))
                await asyncio.sleep(0)
                assert await worker.publish(job_id, f"{count + 1}-0", tokens("a", count))
                assert await joining == "1-0"
                assert (await anext(first))[0] == f"{count + 1}-0"
            await first.aclose()
    finally:
        await redis.execute_command("ACL", "DELUSER", "narrow")


async def first_id(client: Client, job_id: str) -> str:
    """Id of the first event that somebody who begins now is given."""
    async with aclosing(client.stream(job_id)) as events:
        async for event_id, _ in events:
            return event_id
    raise AssertionError("a stream ends with a terminal event")


async def test_a_slow_reader_is_read_for_no_further_than_it_remembers(redis_url: str, redis: Redis) -> None:
    key, count = KEYS.result("standard.1-0"), 10 * READ_COUNT
    for number in range(1, count + 1):
        await redis.execute_command("XADD", key, f"{number}-0", "event", f"{number}")
    expected = [(f"{number}-0", str(number).encode()) for number in range(1, count + 1)]
    link = Link(redis_url)
    follower = Follower(link)
    try:
        with follower.follow(key, "0-0") as slow:
            with follower.follow(key, "0-0") as quick:  # of the same stream, and held up by nobody
                assert await read_all(quick, count) == expected
            first = slow.ready()
            assert READ_COUNT <= len(first) < 2 * READ_COUNT
            assert first + await read_all(slow, count - len(first)) == expected
    finally:
        await follower.aclose()
        await link.aclose()


async def read_all(subscription: Subscription, count: int) -> list[Entry]:
    """So many entries."""
    entries: list[Entry] = []
    async with asyncio.timeout(20):
        while len(entries) < count:
            entries += await subscription.next(5)
    return entries


async def test_a_refused_read_is_an_error_not_a_wait(redis_url: str, redis: Redis) -> None:
    await redis.execute_command("ACL", "SETUSER", "blind", "on", ">secret", "~penstock:*", "+@all", "-xread")
    try:
        async with Client(redis_url.replace("unix://", "unix://blind:secret@")) as client:
            job_id = await client.submit("x")
            with pytest.raises(ServerError, match=r"(?i)no permissions"):
                await client.result(job_id, timeout=10)
        async with Client(redis_url.replace("unix://", "unix://blind:wrong@")) as client:
            with pytest.raises(ServerError, match="refuses the credentials"):
                await client.result("standard.1-0", timeout=10)
    finally:
        await redis.execute_command("ACL", "DELUSER", "blind")


async def test_a_foreign_entry_fails_its_own_follower_only(
    client: Client, redis: Redis, worker: Worker
) -> None:
    spoilt, good = await client.submit_many(["a", "b"])
    waiting = [asyncio.create_task(client.result(job_id, 10)) for job_id in (spoilt, good)]
    await redis.execute_command("XADD", KEYS.result(spoilt), "1-0", "colour", "red")
    with pytest.raises(Exception, match="has no field `event`"):
        await waiting[0]
    await worker.serve(2)
    assert (await waiting[1]).text == good


def test_entry_ids_are_pairs_of_numbers() -> None:
    assert parse_entry_id("12-1") == (12, 1)
    assert parse_entry_id("12") == (12, 0)
    for bad in ("", "-", "1-", "-1", "a-0", "1-0-0", "$", "+", " 1-0"):
        with pytest.raises(ValueError, match="is not a stream entry's id"):
            parse_entry_id(bad)
    assert event_of([b"other", b"x", b"event", b"{}"]) == b"{}"


async def test_an_end_before_what_was_seen_is_still_the_end(client: Client, worker: Worker) -> None:
    """The server lost its last second, and the job ended earlier the second time."""
    job_id = await client.submit(Job(prompt="x", stream=True))
    await worker.claim()
    assert await worker.commit(job_id, done("short"), count=55)
    ends = [event_id async for event_id, _ in client.stream(job_id, after="60-0")]
    assert ends == ["55-1"]
