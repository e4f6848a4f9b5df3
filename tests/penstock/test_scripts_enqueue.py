"""What the enqueue script refuses and remembers, and what requeue and configure make of a queue."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from penstock import Client, Job, ServerError, ServerFull
from penstock.dead import NoSuchLetter
from penstock.errors import QueueFull
from penstock.keys import JobId
from penstock.messages import Error as JobError
from penstock.messages import Failed, decode_job, encode_event
from penstock.scripts import ENQUEUE, Argument
from tests.conftest import Server
from tests.penstock.queue_moves import KEYS

LANE = KEYS.jobs("standard")


@pytest_asyncio.fixture
async def other(redis_url: str) -> AsyncIterator[Client]:
    """A second client."""
    async with Client(redis_url) as client:
        yield client


async def enqueue(redis: Redis, names: list[str], batch: str | None = None, cursor: str = "") -> list[str]:
    """One call; gives the reply's words."""
    keys = [LANE, KEYS.lanes, KEYS.control, LANE if batch is None else KEYS.batch(batch)]
    keys += [KEYS.idempotency(name) for name in names]
    moves = ["1", cursor, cursor + "+"] if batch is not None else ["0", "", ""]
    args: list[Argument] = ["standard", *moves, 1000, 60_000, ""]
    for _ in names:
        args += [f"{random.getrandbits(64):016x}", "{}"]
    return (await ENQUEUE.run(redis, keys, args)).decode().split()


# Idempotency keys


async def test_the_same_call_twice_is_one_job(client: Client, redis: Redis) -> None:
    first = await client.submit("x", idempotency_key="order-7")
    assert await client.submit("another prompt", "bulk", idempotency_key="order-7") == first
    assert await client.submit("x", idempotency_key="order-8") != first
    assert await redis.xlen(LANE) == 2
    assert await redis.exists(KEYS.jobs("bulk")) == 0
    await client.cancel(first)
    assert await client.submit("x", idempotency_key="order-7") == first, "ended jobs are remembered as well"


async def test_a_key_twice_in_one_call_is_one_job(client: Client, redis: Redis) -> None:
    ids = await client.submit_many(["a", "b", "c", "d"], idempotency_keys=["k", "l", "k", "l"])
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == await redis.xlen(LANE) == 2


async def test_two_clients_that_race_make_one_job(client: Client, other: Client, redis: Redis) -> None:
    calls = [
        racer.submit_many(
            [f"{n}" for n in range(50)], chunk=7, idempotency_keys=[f"key-{n}" for n in range(50)]
        )
        for racer in (client, other, client)
    ]
    first, *rest = await asyncio.gather(*calls)
    assert rest == [first, first]
    assert len(set(first)) == await redis.xlen(LANE) == 50


async def test_a_key_is_forgotten_after_its_time(client: Client, redis: Redis) -> None:
    first = await client.submit("x", idempotency_key="k", idempotency_ttl_s=30)
    assert 0 < await redis.pttl(KEYS.idempotency("k")) <= 30_000
    await redis.pexpire(KEYS.idempotency("k"), 0)
    assert await client.submit("x", idempotency_key="k") != first
    assert 30_000 < await redis.pttl(KEYS.idempotency("k")) <= 86_400_000


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(calls=st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8), min_size=1, max_size=5))
def test_a_batch_counts_its_rows_and_not_its_calls(redis_url: str, calls: list[list[str]]) -> None:
    async def count() -> None:
        async with Redis.from_url(redis_url, protocol=2) as redis:
            await redis.flushall()
            await redis.hset(KEYS.batch("rows"), "total", 0)
            known: dict[str, str] = {}
            for n, names in enumerate(calls):
                for name, word in zip(names, await enqueue(redis, names, "rows", "+" * n), strict=True):
                    entry = word if "-" in word and "." not in word else JobId.parse(word).entry
                    assert known.setdefault(name, entry) == entry
            assert await redis.hmget(KEYS.batch("rows"), "total", "cursor") == [
                str(len(known)).encode(),
                b"+" * len(calls),
            ]
            assert await redis.xlen(LANE) == len(known) == len(set(known.values()))

    asyncio.run(count())


# Bounds


async def test_a_lane_is_full_at_its_limit_and_not_before(client: Client, redis: Redis) -> None:
    await client.set_lane("standard", max_jobs=10)
    await client.submit_many(["x"] * 8)
    with pytest.raises(QueueFull, match="the lane holds 8 jobs, its limit is 10") as caught:
        await client.submit_many(["x"] * 3)
    assert caught.value.accepted == []
    assert 0.1 <= caught.value.retry_after_s <= 60
    assert await redis.xlen(LANE) == 8, "all or none"
    ids = await client.submit_many(["x"] * 2)
    with pytest.raises(QueueFull):
        await client.submit("x")
    await client.cancel(ids[0])
    await client.submit("x")


async def test_what_was_enqueued_before_needs_no_room(client: Client, redis: Redis) -> None:
    await client.set_lane("standard", max_jobs=2)
    first = await client.submit("x", idempotency_key="k")
    assert len(set(await client.submit_many(["x"] * 3, idempotency_keys=["l", "l", "k"]))) == 2
    assert await client.submit("x", idempotency_key="k") == first
    with pytest.raises(QueueFull):
        await client.submit("x", idempotency_key="m")
    assert await redis.exists(KEYS.idempotency("m")) == 0, "a refused key is not remembered"


async def test_a_lanes_own_limit_comes_before_the_queues(client: Client) -> None:
    await client.set_lane(None, max_jobs=1)
    await client.set_lane("wide", max_jobs=2)
    await client.submit_many(["x"] * 2, "wide")
    await client.submit("x", "narrow")
    for lane in ("wide", "narrow"):
        with pytest.raises(QueueFull):
            await client.submit("x", lane)


async def test_the_hint_is_how_long_the_oldest_job_waits_for_each_that_does(
    client: Client, redis: Redis
) -> None:
    await client.set_lane("standard", max_jobs=4)
    seconds, _ = await redis.time()
    for n in range(4):
        await redis.xadd(LANE, {"job": "{}"}, id=f"{(seconds - 20) * 1000}-{n}")
    with pytest.raises(QueueFull) as caught:
        await client.submit("x")
    assert 4 <= caught.value.retry_after_s <= 6, "4 jobs in 20 s: 5 s for one"
    with pytest.raises(QueueFull) as caught:
        await client.submit_many(["x"] * 400)
    assert caught.value.retry_after_s == 60, "no longer than a minute"


async def test_enqueues_stop_where_what_runs_can_still_finish(make_server: Callable[..., Server]) -> None:
    server = make_server()
    async with Client(server.url) as client:
        job_id = await client.submit("x", idempotency_key="k")
        with server.client() as plain:
            plain.eval("for i = 1, 10000 do redis.call('SET', i, string.rep('x', 1000)) end", 0)
            plain.config_set("maxmemory", int(plain.info("memory")["used_memory"] / 0.95))
        with pytest.raises(ServerFull, match="the server's memory is full"):
            await client.submit("x")
        assert await client.submit("x", idempotency_key="k") == job_id, "a repeat needs no memory"
        assert await client.cancel(job_id)


# Dead letters


async def dead_letter(redis: Redis, job: str = '{"prompt":"x"}') -> str:
    event = encode_event(Failed(error=JobError(type="engine_error", message="no")))
    fields = {"job_id": "standard.1-1", "job": job, "event": event, "attempts": b""}
    return (await redis.xadd(KEYS.dead, fields)).decode()


async def test_requeueing_twice_at_once_makes_one_job(client: Client, other: Client, redis: Redis) -> None:
    letter = await dead_letter(redis)
    outcomes = await asyncio.gather(
        *(racer.requeue(letter) for racer in (client, other) * 5), return_exceptions=True
    )
    (job_id,) = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert sum(isinstance(outcome, NoSuchLetter) for outcome in outcomes) == 9
    ((entry, fields),) = await redis.xrange(LANE)
    assert job_id == f"standard.{entry.decode()}.{fields[b'nonce'].decode()}"
    assert decode_job(fields[b"job"]) == Job(prompt="x", retry_of="standard.1-1")
    assert await redis.xlen(KEYS.dead) == 0


@pytest.mark.parametrize("wrong", [LANE, KEYS.lanes, KEYS.control])
async def test_a_refused_requeue_keeps_the_letter(client: Client, redis: Redis, wrong: str) -> None:
    letter = await dead_letter(redis)
    await redis.set(wrong, "of another type")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        await client.requeue(letter)
    assert [found.letter_id for found in await client.dead_letters()] == [letter]
    await redis.delete(wrong)
    await client.requeue(letter)


# Settings


async def test_settings_are_merged_and_taken_back(client: Client, redis: Redis) -> None:
    await client.set_lane("standard", weight=2.5, max_jobs=7)
    await client.set_lane("standard", paused=True)
    now = await client.set_lane("standard", max_jobs=None)
    assert (now.weight, now.max_jobs, now.paused) == (2.5, None, True)
    now = await client.set_lane("standard", weight=None, paused=None)
    assert await redis.hget(KEYS.lanes, "standard") == b"{}"
    assert (now.weight, now.paused) == (1.0, False)


@pytest.mark.parametrize("limit", [0, 10**6, 10**12])
async def test_large_limits_stay_whole(client: Client, limit: int) -> None:
    assert (await client.set_lane("standard", max_jobs=limit)).max_jobs == limit
    (lane,) = await client.lanes()
    assert lane.settings.max_jobs == limit


async def test_a_limit_that_the_server_would_not_give_back_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="<= 1000000000000"):
        await client.set_lane("standard", max_jobs=10**14)


@pytest.mark.parametrize("broken", ["{", "5", "null", "[]"])
async def test_settings_broken_by_hand_can_be_set_anew(client: Client, redis: Redis, broken: str) -> None:
    await redis.hset(KEYS.lanes, "standard", broken)
    assert (await client.set_lane("standard", weight=2)).weight == 2
    assert (await client.lanes())[0].settings.weight == 2
