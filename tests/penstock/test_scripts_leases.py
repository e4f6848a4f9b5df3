"""Tokens of leases, and what a failed attempt, a sweep or a key of a wrong type does to jobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.attempts import decode_attempts
from penstock.keys import GROUP
from penstock.messages import Error, encode_error
from penstock.scripts import FAIL, PUBLISH, RELEASE, RENEW, RETIRE, Argument
from tests.conftest import Server
from tests.penstock.queue_moves import KEYS, LEASE_MS, TTL_MS, Queue, Taken

LANE = KEYS.jobs("a")
MAX_MS = 2**64 - 1


@pytest.fixture
def queue(redis_url: str, server: Server) -> Iterator[Queue]:
    """An empty queue on the session's server."""
    with server.client() as client:
        yield Queue(client)


def renew(queue: Queue, consumer: str, leases: Sequence[tuple[str, int]]) -> list[int]:
    flat = [part for lease in leases for part in lease]
    return queue.run(RENEW, [LANE], [GROUP, consumer, *flat])


# Looking many leases up at once

IDS = st.builds(
    "{}-{}".format,
    st.integers(1, 30) | st.integers(10**12, 10**12 + 9) | st.integers(MAX_MS - 20, MAX_MS - 1),
    st.sampled_from([0, 1, 9, 10, 2**53, 2**53 + 1, MAX_MS]),
)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_many_leases_are_found_as_single_ones_are(queue: Queue, data: st.DataObject) -> None:
    """Whatever else the consumer and others hold between them, and however often one is asked for."""
    queue.server.flushall()
    ids = data.draw(st.lists(IDS, min_size=1, max_size=40, unique=True))
    ids.sort(key=lambda entry: tuple(map(int, entry.split("-"))))
    for entry in ids:
        queue.server.xadd(LANE, {"job": "{}"}, id=entry)
    queue.server.xgroup_create(LANE, GROUP, "0")
    held: dict[str, tuple[str, int]] = {}
    for entry in ids:
        owner, count = data.draw(st.sampled_from(["me", "me", "other"])), data.draw(st.integers(1, 3))
        queue.server.xreadgroup(GROUP, owner, {LANE: ">"}, count=1)
        queue.server.xclaim(LANE, GROUP, owner, 0, [entry], retrycount=count, justid=True)
        held[entry] = (owner, count)
    asked = data.draw(st.lists(st.tuples(st.sampled_from(ids), st.integers(1, 3)), min_size=1, max_size=12))
    expected = [int(held[entry] == ("me", count)) for entry, count in asked]
    assert renew(queue, "me", asked) == expected
    assert [renew(queue, "me", [lease])[0] for lease in asked] == expected


@pytest.mark.parametrize("others", [0, 5])
def test_an_older_lease_is_told_from_a_newer_one_in_one_call(queue: Queue, others: int) -> None:
    """A consumer that was too slow to renew may be given its own job anew, and ask for both."""
    queue.lane("a", 1 + others)
    rest = queue.claim("me", 1 + others)
    first, rest = rest[0], rest[1:]
    queue.server.xclaim(LANE, GROUP, "me", 0, [first.entry], idle=LEASE_MS, justid=True)
    (second,) = queue.claim("me", 1)
    assert (second.entry, second.deliveries) == (first.entry, 2)
    leases = [second, first, *rest, first, second]
    asked = [(job.entry, job.deliveries) for job in leases]
    assert renew(queue, "me", asked) == [1, 0, *[1] * others, 0, 1]
    args: list[Argument] = [GROUP, "me"]
    for job in leases:
        args += [job.entry, job.deliveries, TTL_MS, 0, "1-0", "{}", ""]
    published = queue.run(PUBLISH, [LANE, *(job.result for job in leases)], args)
    assert published == [1, 0, *[1] * others, 0, 1]
    assert queue.commit(first, "me", 1) is False
    assert queue.commit(second, "me", 1) is True


# Failing

ERROR = Error(type="engine_error", message='said "no",\nand more: é', retryable=True)


def fail(
    queue: Queue,
    taken: Taken,
    consumer: str,
    *,
    delay_ms: int = 0,
    allowed: int = 3,
    batch: str | None = None,
) -> str:
    keys = [LANE, taken.result, KEYS.attempts, KEYS.dead]
    if batch is not None:
        keys += [KEYS.batch(batch), KEYS.batch_done(batch)]
    args: list[Argument] = [GROUP, consumer, taken.entry, taken.deliveries, LEASE_MS, delay_ms, allowed]
    args += [encode_error(ERROR), TTL_MS, "drop", "0-1", '{"type":"failed"}', "7", 1_000_000]
    return queue.run(FAIL, keys, args).decode()


def test_attempts_are_counted_apart_from_deliveries(queue: Queue) -> None:
    queue.lane("a", 1)
    seen: list[tuple[int, int]] = []
    for outcome in ("retry", None, "retry", None, "dead"):
        (job,) = queue.claim("me", 1)
        seen.append((job.deliveries, job.num_failures))
        if outcome is None:
            release = [GROUP, "me", LEASE_MS, 0, job.entry, job.deliveries]
            assert queue.run(RELEASE, [KEYS.control, LANE], release) == [1]
        else:
            assert fail(queue, job, "me") == outcome
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert queue.server.xlen(LANE) == queue.server.exists(KEYS.attempts) == 0
    ((_, letter),) = queue.server.xrange(KEYS.dead)
    assert (letter[b"job_id"].decode(), letter[b"job"]) == (f"a.{job.entry}", b"{}")
    attempts = decode_attempts(letter[b"attempts"])
    assert [attempt.error for attempt in attempts] == [ERROR] * 3
    assert [attempt.consumer for attempt in attempts] == ["me"] * 3
    assert [attempt.retry_at_ms for attempt in attempts][-1] == 0
    assert all(attempt.retry_at_ms == attempt.at_ms for attempt in attempts[:-1])
    assert queue.server.xrange(job.result) == [(b"0-1", {b"event": letter[b"event"]})]
    assert 0 < queue.server.pttl(job.result) <= TTL_MS


def test_a_delay_is_kept_and_is_a_lease_at_most(queue: Queue) -> None:
    queue.lane("a", 2)
    short, long = queue.claim("me", 2)
    assert fail(queue, short, "me", delay_ms=1000) == "retry"
    assert fail(queue, long, "me", delay_ms=10 * LEASE_MS) == "retry"
    assert queue.claim("me", 2) == []
    idle = {row["message_id"].decode(): row["time_since_delivered"] for row in pending(queue.server)}
    assert LEASE_MS - 1000 <= idle[short.entry] < LEASE_MS
    assert 0 <= idle[long.entry] < LEASE_MS
    for job, delay_ms in ((short, 1000), (long, LEASE_MS)):
        (attempt,) = decode_attempts(queue.server.hget(KEYS.attempts, f"a.{job.entry}"))
        assert attempt.retry_at_ms - attempt.at_ms == delay_ms


def pending(server: redis.Redis) -> list[Any]:
    return server.xpending_range(LANE, GROUP, "-", "+", 100)


def test_a_lost_lease_cannot_fail_a_job(queue: Queue) -> None:
    queue.lane("a", 1)
    (job,) = queue.claim("me", 1)
    for consumer, allowed in (("other", 1), ("other", 3)):
        assert fail(queue, job, consumer, allowed=allowed) == "lost"
    assert queue.server.exists(KEYS.attempts, KEYS.dead, job.result) == 0
    assert renew(queue, "me", [(job.entry, 1)]) == [1]


def test_the_last_failure_of_a_row_is_the_rows_end(queue: Queue) -> None:
    queue.server.hset(KEYS.batch("rows"), "total", 1)
    queue.lane("a", 1)
    (job,) = queue.claim("me", 1)
    queue.server.xadd(job.result, {"event": "{}"}, id="3-0")
    assert fail(queue, job, "me", allowed=1, batch="rows") == "dead"
    assert queue.server.hgetall(KEYS.batch("rows")) == {b"total": b"1", b"failed": b"1"}
    ((_, row),) = queue.server.xrange(KEYS.batch_done("rows"))
    assert row == {b"job_id": f"a.{job.entry}".encode(), b"row": b"7", b"event": b'{"type":"failed"}'}
    assert queue.server.exists(job.result) == 0
    assert min(queue.server.ttl(KEYS.batch("rows")), queue.server.ttl(KEYS.batch_done("rows"))) > 0
    assert queue.server.xlen(KEYS.dead) == 1


def test_a_full_server_takes_failures(make_server: Callable[..., Server]) -> None:
    server = make_server()
    with server.client() as client:
        queue = Queue(client)
        queue.lane("a", 2)
        again, last = queue.claim("me", 2)
        client.config_set("maxmemory", 1)
        assert fail(queue, again, "me") == "retry"
        assert fail(queue, last, "me", allowed=1) == "dead"
        assert client.xlen(KEYS.dead) == client.hlen(KEYS.attempts) == client.xlen(last.result) == 1


def test_a_job_deleted_by_hand_can_still_fail(queue: Queue) -> None:
    (entry,) = queue.lane("a", 1)
    (job,) = queue.claim("me", 1)
    queue.server.xdel(LANE, entry)
    assert fail(queue, job, "me", allowed=1) == "dead"
    assert pending(queue.server) == []


# Keys of a wrong type

WRONG = [KEYS.dead, KEYS.attempts, KEYS.batch("rows"), KEYS.batch_done("rows")]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_refused_failure_leaves_the_job_as_it_was(queue: Queue, wrong: str) -> None:
    queue.lane("a", 1)
    (job,) = queue.claim("me", 1)
    queue.server.hset(KEYS.batch("rows"), "total", 1)
    queue.server.delete(wrong)
    queue.server.set(wrong, "of another type")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        fail(queue, job, "me", allowed=1, batch="rows")
    assert renew(queue, "me", [(job.entry, 1)]) == [1]
    assert queue.server.xlen(LANE) == 1
    queue.server.delete(wrong)
    assert fail(queue, job, "me", allowed=1, batch="rows") == "dead"


@pytest.mark.parametrize("wrong", [KEYS.attempts, KEYS.deficits])
def test_a_refused_commit_leaves_the_job_as_it_was(queue: Queue, wrong: str) -> None:
    queue.lane("a", 1)
    (job,) = queue.claim("me", 1)
    queue.server.delete(wrong)
    queue.server.set(wrong, "of another type")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        queue.commit(job, "me", 1)
    assert queue.server.xlen(LANE) == 1
    queue.server.delete(wrong)
    assert queue.commit(job, "me", 1)


# Sweeping


def heartbeat(queue: Queue, name: str, age_ms: int) -> None:
    seconds, micros = queue.server.time()
    beat = {"at_ms": seconds * 1000 + micros // 1000 - age_ms, "interval_ms": 1000}
    queue.server.hset(KEYS.consumers, name, json.dumps(beat))


def retire(queue: Queue, whom: str, spare: str = "", lease_ms: int = LEASE_MS) -> int:
    return queue.run(RETIRE, [KEYS.control, KEYS.consumers, LANE], [GROUP, lease_ms, whom, spare])


def test_a_sweep_removes_the_dead_and_loses_nothing_of_theirs(queue: Queue) -> None:
    queue.lane("a", 260)
    for name, count in (("dead.1", 250), ("live.2", 3), ("mute.3", 3), ("me.4", 3)):
        assert len(queue.claim(name, count)) == count
    heartbeat(queue, "dead.1", 3500)
    heartbeat(queue, "live.2", 2500)
    heartbeat(queue, "me.4", 100_000)
    heartbeat(queue, "gone.5", 100_000)
    queue.server.hset(KEYS.consumers, "broken.6", "{")
    assert retire(queue, "?", spare="me.4") == 250
    assert {name.decode() for name in queue.server.hkeys(KEYS.consumers)} == {"live.2", "me.4"}
    counts = {row["name"].decode(): row["pending"] for row in queue.server.xinfo_consumers(LANE, GROUP)}
    assert counts == {"-": 250, "live.2": 3, "mute.3": 3, "me.4": 3}
    taken = queue.claim("me.4", 1000)
    assert len(taken) == 251
    assert sorted({job.deliveries for job in taken}) == [1, 2]


def test_without_a_heartbeat_silence_is_three_leases(queue: Queue) -> None:
    queue.lane("a", 1)
    queue.claim("mute.1", 1)
    assert retire(queue, "?") == 0
    assert retire(queue, "?", lease_ms=-1) == 1  # every silence is longer


def test_a_prefix_takes_no_neighbours(queue: Queue) -> None:
    queue.lane("a", 4)
    for name in ("node.0a", "node.gpu.0b", "node2.0c", "node.0d"):
        queue.claim(name, 1)
    assert retire(queue, "node.*", spare="node.0d") == 1
    counts = {row["name"].decode() for row in queue.server.xinfo_consumers(LANE, GROUP)}
    assert counts == {"-", "node.gpu.0b", "node2.0c", "node.0d"}


def test_a_sweep_of_entries_that_somebody_deleted_ends(queue: Queue) -> None:
    first, _ = queue.lane("a", 2)
    queue.claim("dead.1", 2)
    queue.server.xdel(LANE, first)
    heartbeat(queue, "dead.1", 100_000)
    assert retire(queue, "?") == 2
    assert len(queue.claim("me", 5)) == 1
    assert "dead.1" not in {row["name"].decode() for row in queue.server.xinfo_consumers(LANE, GROUP)}
