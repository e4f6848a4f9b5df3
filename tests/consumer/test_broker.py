"""The broker's scripts at the edges that the whole consumer rarely meets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from consumer.broker import Broker
from consumer.lease import Ending, Lease, Progress, job_key
from penstock.client import Client
from penstock.keys import GROUP, Keys
from penstock.link import Link
from penstock.messages import Heartbeat, Job, Tokens, encode_event
from tests.conftest import Server

KEYS = Keys()


@pytest_asyncio.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    link = Link(redis_url)
    yield link
    await link.aclose()


@pytest_asyncio.fixture
async def broker(link: Link) -> Broker:
    broker = Broker(link, KEYS, "node.aaaa", 60_000)
    await broker.start(take_over=None)
    return broker


async def claimed(redis_url: str, broker: Broker, count: int = 1) -> list[Progress]:
    """Jobs that the broker holds, each with its first event."""
    async with Client(redis_url) as client:
        await client.submit_many(Job(prompt="x", stream=True) for _ in range(count))
    return [
        Progress(
            lease=lease,
            num_before=0,
            event_id="2-0",
            event=encode_event(Tokens(text="ab", token_ids=[97, 98], text_offset=0)),
            ttl_ms=60_000,
        )
        for lease in await broker.claim(count)
    ]


async def test_a_repeated_publish_loses_nothing(redis: Redis, redis_url: str, broker: Broker) -> None:
    progress = await claimed(redis_url, broker, 3)
    assert await broker.publish(progress[:1]) == []
    assert await broker.publish(progress) == [], "the first was published by a call whose reply was lost"
    assert [await redis.xlen(KEYS.result(p.lease.key)) for p in progress] == [1, 1, 1]


async def test_nothing_is_published_behind_a_hole(redis: Redis, redis_url: str, broker: Broker) -> None:
    (first,) = await claimed(redis_url, broker)
    assert await broker.publish([first]) == []
    await redis.delete(KEYS.result(first.lease.key))
    event = encode_event(Tokens(text="c", token_ids=[99], text_offset=2))
    second = Progress(lease=first.lease, num_before=2, event_id="3-0", event=event, ttl_ms=60_000)
    assert await broker.publish([second]) == [first.lease]
    assert await redis.xlen(KEYS.result(first.lease.key)) == 0


def tokens(lease: Lease, before: int, count: int) -> Progress:
    event = Tokens(text="x" * count, token_ids=[120] * count, text_offset=before)
    return Progress(
        lease=lease,
        num_before=before,
        event_id=f"{before + count}-0",
        event=encode_event(event),
        ttl_ms=60_000,
    )


async def test_nothing_is_published_over_what_another_run_cut_otherwise(
    redis: Redis, redis_url: str, broker: Broker
) -> None:
    (first,) = await claimed(redis_url, broker)
    assert await broker.publish([tokens(first.lease, 0, 3)]) == []
    assert await broker.publish([tokens(first.lease, 0, 2)]) == [], "it is there, in another event"
    assert await broker.publish([tokens(first.lease, 2, 2)]) == [first.lease]
    assert await broker.publish([tokens(first.lease, 0, 5)]) == [first.lease]
    assert await redis.xlen(KEYS.result(first.lease.key)) == 1


def end_behind(lease: Lease, before: int, *, with_tokens: bool, batch: str | None = None) -> Ending:
    return Ending(
        lease=lease,
        terminal_id="5-1",
        terminal=b"{}",
        completed=True,
        result_ttl_ms=60_000,
        tokens_id="5-0" if with_tokens else "",
        tokens=b"{}" if with_tokens else b"",
        num_before=before,
        batch=batch,
    )


@pytest.mark.parametrize("with_tokens", [True, False])
@pytest.mark.parametrize("batch", [None, "nightly"])
@pytest.mark.parametrize("left", [0, 2])
async def test_no_stream_is_ended_behind_a_hole(
    redis: Redis, redis_url: str, broker: Broker, with_tokens: bool, batch: str | None, left: int
) -> None:
    """The server lost all of a stream, or its tail. The job beside it in the call ends."""
    holed, whole = await claimed(redis_url, broker, 2)
    if batch is not None:
        await redis.hset(KEYS.batch(batch), "total", "2")
    assert await broker.publish([tokens(whole.lease, 0, 4)]) == []
    if left:
        assert await broker.publish([tokens(holed.lease, 0, left)]) == []
    ends = [
        end_behind(lease, 4, with_tokens=with_tokens, batch=batch) for lease in (holed.lease, whole.lease)
    ]
    assert await broker.commit(ends) == [holed.lease]
    assert await redis.xlen(KEYS.result(holed.lease.key)) == (left > 0)
    assert await redis.xlen(KEYS.jobs("standard")) == 1
    assert await broker.renew([holed.lease]) == [], "the lease is still ours, to be given back"
    assert await broker.publish([tokens(holed.lease, left, 4 - left)]) == []
    assert await broker.commit(ends[:1]) == []


async def test_no_stream_is_ended_over_what_another_run_cut_otherwise(redis_url: str, broker: Broker) -> None:
    (first,) = await claimed(redis_url, broker)
    assert await broker.publish([tokens(first.lease, 0, 3)]) == []
    assert await broker.commit([end_behind(first.lease, 0, with_tokens=True)]) == [first.lease]
    assert await broker.commit([end_behind(first.lease, 3, with_tokens=True)]) == []


async def test_a_claim_by_the_same_token_is_another_run(redis: Redis, redis_url: str, broker: Broker) -> None:
    """The group is as it was before the claim, as after the restart of a server that lost its last second."""
    (first,) = await claimed(redis_url, broker)
    await redis.xgroup_destroy(KEYS.jobs("standard"), GROUP)
    await redis.xgroup_create(KEYS.jobs("standard"), GROUP, "0")
    (again,) = await broker.claim(1)
    assert (again.job_id, again.deliveries) == (first.lease.job_id, first.lease.deliveries)
    assert again.request_id != first.lease.request_id
    assert job_key(again.request_id) == job_key(first.lease.request_id) == again.key


async def test_a_take_over_spares_names_that_only_begin_alike(
    redis_url: str, link: Link, broker: Broker
) -> None:
    neighbour = Broker(link, KEYS, "node.gpu1.bbbb", 60_000)
    await neighbour.start(take_over=None)
    (theirs,) = await claimed(redis_url, neighbour)
    (ours,) = await claimed(redis_url, broker)
    restarted = Broker(link, KEYS, "node.cccc", 60_000)
    await restarted.start(take_over="node")
    assert await neighbour.renew([theirs.lease]) == []
    assert await broker.renew([ours.lease]) == [ours.lease]
    assert [lease.job_id for lease in await restarted.claim(5)] == [ours.lease.job_id]


@pytest.mark.parametrize("credit", [1, 5])
async def test_a_lane_without_a_stream_strands_nothing(
    redis: Redis, redis_url: str, broker: Broker, credit: int
) -> None:
    await redis.hset(KEYS.lanes, "absent", "{}")
    await broker.start(take_over=None)
    broker.connection_lost()  # reclaiming, which would make the stream, is paused
    async with Client(redis_url) as client:
        ids = set(await client.submit_many(["x"] * 5))
    taken: list[str] = []
    for _ in range(20):
        taken += [lease.key for lease in await broker.claim(credit)]
    assert sorted(taken) == sorted(ids)


async def test_who_starts_after_a_restart_of_the_server_lets_the_owners_renew_first(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(aof=True)
    link = Link(server.url)
    owner, other = (Broker(link, KEYS, name, 1_500) for name in ("owner.aaaa", "other.bbbb"))
    theirs, released = await claimed(server.url, owner, 2)
    await owner.release([released.lease])
    await owner.heartbeat(Heartbeat(model="m", phase="ready", at_ms=0, interval_ms=500))
    with server.client() as redis:  # what the downtime does
        entries = [theirs.lease.job_id.entry]
        redis.xclaim(KEYS.jobs("standard"), GROUP, "owner.aaaa", 0, entries, idle=60_000, justid=True)
    server.kill()
    server.start()
    await link.patiently(lambda: other.start(take_over=None))
    (taken,) = await other.claim(2)
    assert taken.job_id == released.lease.job_id
    assert taken.deliveries == 2
    assert await other.renew([taken]) == []
    assert await owner.renew([theirs.lease]) == []
    await link.aclose()


async def test_who_starts_alone_on_a_fresh_server_waits_for_nobody(
    make_server: Callable[..., Server],
) -> None:
    server = make_server()
    link = Link(server.url)
    gone, other = (Broker(link, KEYS, name, 60_000) for name in ("node.aaaa", "node.bbbb"))
    (theirs,) = await claimed(server.url, gone)
    await gone.heartbeat(Heartbeat(model="m", phase="ready", at_ms=0, interval_ms=500))
    await other.start(take_over="node")
    assert [lease.job_id for lease in await other.claim(1)] == [theirs.lease.job_id]
    await link.aclose()


@pytest.mark.parametrize("lane", ["standard", None])
async def test_what_is_paused_wakes_nobody_until_it_goes_on(
    redis: Redis, redis_url: str, broker: Broker, lane: str | None
) -> None:
    async with Client(redis_url) as client:
        await client.pause(lane)
        ids = await client.submit_many(["x"] * 5)
        await broker.wait_for_cancelled(1)  # reads what is on the control stream so far
        assert await broker.claim(10) == []
        async with asyncio.timeout(10):
            waiting = asyncio.create_task(broker.wait_for_jobs(10_000))
            while not (await redis.info("clients"))["blocked_clients"]:
                assert not waiting.done(), "it would claim in vain, again and again"
                await asyncio.sleep(0.01)
            await client.resume(lane)
            await waiting
        assert [lease.key for lease in await broker.claim(10)] == ids


async def test_renewing_an_older_lease_does_not_hide_the_newer_one(
    redis: Redis, redis_url: str, link: Link, broker: Broker
) -> None:
    """Where this process was too slow to renew, and was given its own job anew."""
    (first,) = await claimed(redis_url, broker)
    entry = first.lease.job_id.entry
    await redis.xclaim(KEYS.jobs("standard"), GROUP, "node.aaaa", 0, [entry], idle=60_000, justid=True)
    (second,) = await Broker(link, KEYS, "node.aaaa", 60_000).claim(1)  # its next look for expired leases
    assert await broker.renew([second, first.lease]) == [first.lease]
    assert await broker.renew([first.lease, second]) == [first.lease]


async def test_a_lane_whose_notice_was_missed_is_found_after_an_outage(
    redis: Redis, redis_url: str, broker: Broker
) -> None:
    async with Client(redis_url) as client:
        job_id = await client.submit("x", lane="missed")
    await redis.delete(KEYS.control)  # as if it had been trimmed
    assert await broker.claim(1) == []
    broker.connection_lost()
    assert [lease.key for lease in await broker.claim(1)] == [job_id]


async def test_a_lane_pays_for_what_its_cancelled_jobs_have_cost(
    redis: Redis, redis_url: str, broker: Broker
) -> None:
    """Else whoever cancels just before the end computes for nothing."""
    async with Client(redis_url) as client:
        for lane in ("cancels", "honest"):
            await client.submit_many(["x"] * 600, lane)
        broker.connection_lost()
        cost = dict.fromkeys(("cancels", "honest"), 0)
        for _ in range(100):
            for lease in await broker.claim(4):
                cost[lease.job_id.lane] += 1000
                if lease.job_id.lane == "cancels":
                    assert await client.cancel(lease.key)
                    await broker.settle(lease, 1000)
                else:
                    ending = Ending(
                        lease=lease,
                        terminal_id="1-1",
                        terminal=b"{}",
                        completed=True,
                        result_ttl_ms=1000,
                        num_tokens=1000,
                    )
                    assert await broker.commit([ending]) == []
    assert cost["cancels"] < 1.5 * cost["honest"]
