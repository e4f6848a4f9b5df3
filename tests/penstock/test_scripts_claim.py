"""Who is served next: deficit round robin in the claim script, on a real server, at given costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.keys import GROUP
from tests.conftest import Server
from tests.penstock.queue_moves import KEYS, Queue, Taken

Costs = Mapping[str, Callable[[random.Random], int]]


@pytest.fixture
def queue(redis_url: str, server: Server) -> Iterator[Queue]:
    """An empty queue on the session's server."""
    with server.client() as client:
        yield Queue(client)


def always(cost: int) -> Callable[[random.Random], int]:
    """Jobs that all cost the same."""
    return lambda rng: cost


def mostly_short(rng: random.Random) -> int:
    """35 tokens on average; one job in twenty costs 600."""
    return 600 if rng.random() < 0.05 else 5


def serve(
    queue: Queue, weights: Mapping[str, float], costs: Costs, *, credit: int, steps: int
) -> dict[str, int]:
    """Three consumers, each with room for `credit` jobs; half of its jobs end between two of its claims.

    Every lane always has jobs. Gives the tokens that each got.
    """
    rng, used = random.Random(0), dict.fromkeys(weights, 0)
    waiting = dict.fromkeys(weights, 0)
    running: list[list[Taken]] = [[], [], []]
    for step in range(steps):
        for lane, weight in weights.items():
            if waiting[lane] < 2 * credit:
                queue.lane(lane, 100, f'{{"weight":{weight}}}')
                waiting[lane] += 100
        consumer, mine = f"node.{step % 3}", running[step % 3]
        for taken in queue.claim(consumer, credit - len(mine), reclaims=False):
            waiting[taken.lane] -= 1
            mine.append(taken)
        rng.shuffle(mine)
        for _ in range(max(1, len(mine) // 2)):
            taken = mine.pop()
            cost = costs[taken.lane](rng)
            used[taken.lane] += cost
            assert queue.commit(taken, consumer, cost)
    return used


@pytest.mark.parametrize("credit", [1, 16])
@pytest.mark.parametrize(
    ("weights", "costs"),
    [
        ({"a": 1, "b": 1}, {"a": always(10), "b": always(1000)}),
        ({"a": 1, "b": 3}, {"a": always(100), "b": always(100)}),
        ({"a": 2, "b": 1}, {"a": always(500), "b": always(20)}),
        ({"a": 0.01, "b": 0.03}, {"a": always(40), "b": always(20)}),
        ({"a": 1, "b": 1}, {"a": mostly_short, "b": always(35)}),
        ({"a": 1, "b": 1}, {"a": always(35), "b": mostly_short}),
        ({"a": 1, "b": 1, "c": 2}, {"a": mostly_short, "b": always(5), "c": always(300)}),
    ],
)
def test_lanes_get_tokens_by_their_weights(
    queue: Queue, weights: Mapping[str, float], costs: Costs, credit: int
) -> None:
    tokens = serve(queue, weights, costs, credit=credit, steps=1500 if credit == 1 else 150)
    total = sum(tokens.values())
    for lane, weight in weights.items():
        fair = total * weight / sum(weights.values())
        assert tokens[lane] == pytest.approx(fair, rel=max(0.05, 1200 / fair))  # the longest job, twice


def test_one_job_among_a_flood_is_served_in_its_turn(queue: Queue) -> None:
    for n in range(5):
        queue.lane(f"flood-{n}", 200, '{"weight":100}')
    (entry,) = queue.lane("single", 1, '{"weight":0.01}')
    served: list[Taken] = []
    for _ in range(125):
        taken = queue.claim("node", 8)
        served += taken
        if any(job.lane == "single" for job in taken):
            break
        for job in taken:
            queue.commit(job, "node", 5000)
    assert [job.entry for job in served if job.lane == "single"] == [entry]
    # A turn of weight 100 pays for 6 jobs of 5,000 tokens; the claim in which it ends may go on to its end.
    assert len(served) <= 5 * (6 + 8) + 8


def test_a_lane_that_was_alone_does_not_pay_for_it_for_ever(queue: Queue) -> None:
    queue.lane("alone", 400)
    for _ in range(100):
        for job in queue.claim("node", 4):
            queue.commit(job, "node", 100_000)
    queue.lane("alone", 2000)
    queue.lane("late", 2000)
    tokens = {"alone": 0, "late": 0}
    while tokens["late"] < 2 * 64 * 100_000:
        for job in queue.claim("node", 4):
            tokens[job.lane] += 100_000
            queue.commit(job, "node", 100_000)
    assert tokens["late"] - tokens["alone"] <= 66 * 100_000, "64 jobs of debt, and one that is being served"
    assert tokens["alone"] > 0


def test_what_cheap_jobs_give_back_is_not_saved_up_by_an_empty_lane(queue: Queue) -> None:
    queue.lane("a", 200)
    taken = queue.claim("node", 200)
    assert sum(job.charged for job in taken) == 200 * 256
    for job in taken[:-1]:
        queue.commit(job, "node", 1)
    queue.lane("b", 0)
    assert queue.claim("node", 1) == []
    assert queue.deficit("a") <= 0, "a claim finds nothing to take in it"
    queue.commit(taken[-1], "node", 1)
    assert queue.deficit("a") <= 0, "its last job has ended"
    queue.lane("a", 2000)
    queue.lane("b", 2000)
    served = [job.lane for job in queue.claim("node", 600)]
    assert served.count("b") >= 2, "both have their turns"


def test_what_is_refused_at_once_is_given_back(queue: Queue) -> None:
    """A job that never got as far as the engine costs its lane nothing."""
    queue.lane("a", 11)
    taken = queue.claim("node", 10)
    before = queue.deficit("a")
    for job in taken:
        queue.commit(job, "node", 0)
    assert queue.deficit("a") - before == sum(job.charged for job in taken) > 0


def test_paused_lanes_get_nothing(queue: Queue) -> None:
    queue.lane("a", 5, '{"paused":true}')
    (left,) = queue.lane("b", 1)
    assert [job.entry for job in queue.claim("node", 10)] == [left]
    queue.lane("*", 0, '{"paused":true}')
    queue.lane("b", 5)
    assert queue.claim("node", 10) == []
    queue.lane("*", 0)
    assert {job.lane for job in queue.claim("node", 10)} == {"b"}
    queue.lane("a", 0)
    assert [job.lane for job in queue.claim("node", 10)] == ["a"] * 5


def test_nobody_is_woken_by_what_is_paused(queue: Queue) -> None:
    """A consumer waits for entries beyond those that the claim names."""
    *_, last = queue.lane("a", 5, '{"paused":true}')
    assert queue.claim_reply("node", 10)[1] == {"a": (last, "0-0")}
    queue.lane("a", 0, "{}")
    assert len(queue.claim("node", 10)) == 5


def test_the_state_is_the_queues_and_not_a_consumers(queue: Queue) -> None:
    """One claim by each of many consumers shares out like many claims by one."""
    queue.lane("a", 100, '{"weight":3}')
    queue.lane("b", 100)
    lanes = [job.lane for n in range(80) for job in queue.claim(f"node.{n}", 1)]
    assert (lanes.count("a"), lanes.count("b")) == (60, 20)


def test_lanes_whose_jobs_all_run_take_no_credit_from_others(queue: Queue) -> None:
    for n in range(10):
        queue.lane(f"busy-{n}", 1)
    assert len(queue.claim("node", 10)) == 10
    (entry,) = queue.lane("waiting", 1)
    assert [job.entry for job in queue.claim("node", 1)] == [entry]


@pytest.mark.parametrize(
    "broken", ["{", "5", "null", '{"weight":null}', '{"weight":"x"}', '{"weight":0}', '{"weight":-1}']
)
@pytest.mark.parametrize("lane", ["a", "*"])
def test_settings_broken_by_hand_stop_nobody(queue: Queue, lane: str, broken: str) -> None:
    queue.lane("a", 3)
    queue.lane("b", 3)
    queue.lane(lane, 0, broken)
    assert sorted(job.lane for job in queue.claim("node", 6)) == ["a"] * 3 + ["b"] * 3


def test_a_thousand_lanes_cost_one_call_each(queue: Queue) -> None:
    for n in range(1000):
        queue.server.hset(KEYS.lanes, f"tenant-{n:03}", "{}")
    queue.lane("tenant-500", 5)
    queue.claim("node", 1)
    queue.server.config_resetstat()
    assert len(queue.claim("node", 4)) == 4
    assert calls(queue.server) <= 1000 + 20


def calls(server: redis.Redis) -> int:
    """Commands that the server has run since its statistics were reset."""
    stats = server.info("commandstats")
    return sum(stat["calls"] for name, stat in stats.items() if "eval" not in name)


def test_a_full_server_goes_on_giving_out_jobs(make_server: Callable[..., Server]) -> None:
    server = make_server()
    with server.client() as client:
        queue = Queue(client)
        queue.lane("a", 3)
        queue.lane("b", 3)
        queue.claim("node", 1)
        client.config_set("maxmemory", 1)
        lanes = [job.lane for _ in range(5) for job in queue.claim("node", 1, reclaims=False)]
        assert sorted(lanes) == ["a"] * 2 + ["b"] * 3 or sorted(lanes) == ["a"] * 3 + ["b"] * 2


LANE_STATES = st.tuples(
    st.integers(0, 12),  # jobs
    st.sampled_from([0.01, 0.3, 1, 7, 1000]),  # weight
    st.one_of(st.none(), st.floats(-1e12, 1e12)),  # deficit
    st.one_of(st.none(), st.floats(0.1, 1e9)),  # cost
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    states=st.lists(LANE_STATES, min_size=1, max_size=8),
    credit=st.integers(1, 40),
    turn=st.sampled_from(["", "lane-3", ">lane-0", ">lane-3", ">gone", "zzz"]),
)
def test_any_state_gives_out_as_much_as_there_is(
    queue: Queue, states: list[tuple[int, float, float | None, float | None]], credit: int, turn: str
) -> None:
    queue.server.flushall()
    for n, (count, weight, deficit, cost) in enumerate(states):
        queue.lane(f"lane-{n}", count, f'{{"weight":{weight}}}')
        if deficit is not None:
            queue.server.hset(KEYS.deficits, f"lane-{n}", repr(deficit))
        if cost is not None:
            queue.server.hset(KEYS.deficits, f"lane-{n}:cost", repr(cost))
    if turn:
        queue.server.hset(KEYS.deficits, "*", turn)
    total = sum(count for count, *_ in states)
    taken = queue.claim("node", credit)
    assert len(taken) == min(credit, total)
    for n, (count, weight, _, cost) in enumerate(states):
        assert sum(job.lane == f"lane-{n}" for job in taken) <= count
        bound = 64 * max(cost or 256, 256 * weight, 1)
        assert -2 * bound - 1 <= queue.deficit(f"lane-{n}") <= 2 * bound + 1 or not count
    assert len(queue.claim("node", 1000)) == total - len(taken)
    assert (
        queue.server.xpending(KEYS.jobs("lane-0"), GROUP)["pending"] == states[0][0] if states[0][0] else True
    )
