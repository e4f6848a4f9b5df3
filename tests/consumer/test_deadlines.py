"""Deadlines: which of the running jobs are due, and that a job ends at its own wherever it is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from consumer.deadlines import Deadlines
from penstock.client import Client
from penstock.errors import JobFailed
from penstock.keys import Keys
from penstock.messages import Failed, Job, SamplingParams, Tokens
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.consumer.scripted_engine import logged

moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9), st.integers(0, 50)),
        st.tuples(st.just("forget"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("pass"), st.just(0), st.integers(0, 20)),
    ),
    max_size=400,
)


@given(moves)
def test_whoever_is_due_is_taken_once(moves: list[tuple[str, int, int]]) -> None:
    deadlines, known, now = Deadlines(), dict[str, float](), 0
    for move, number, time_s in moves:
        key = f"job {number}"
        if move == "add":
            deadlines.add(key, now + time_s)
            known[key] = now + time_s
        elif move == "forget":
            deadlines.forget(key)
            known.pop(key, None)
        else:
            now += time_s
            due = sorted(key for key, at in known.items() if at <= now)
            assert sorted(deadlines.take_expired(now)) == due
            known = {key: at for key, at in known.items() if at > now}
        assert deadlines.next_at == min(known.values(), default=None)


def test_ended_jobs_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for number in range(10_000):
        deadlines.add(f"job {number}", 1e9)
        deadlines.forget(f"job {number}")
    assert len(deadlines._heap) <= 100


def job(prompt: str, num_tokens: int = 400, deadline_s: float | None = None, *, stream: bool = False) -> Job:
    return Job(
        prompt=prompt,
        stream=stream,
        deadline_s=deadline_s,
        sampling_params=SamplingParams(max_tokens=num_tokens),
    )


async def late(client: Client, job_id: str) -> None:
    with pytest.raises(JobFailed) as failure:
        await client.result(job_id, timeout=10)
    assert failure.value.error.type == "deadline_exceeded"
    assert not failure.value.error.retryable


async def test_a_job_too_late_at_its_claim_never_reaches_the_engine(redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    model = save_model(tmp_path / "model", {"log": str(log)})
    async with Client(redis_url) as client:
        ids = await client.submit_many([job("late", 5, 0.05), job("in time", 5, 60)])
        await asyncio.sleep(0.1)
        async with consuming(redis_url, model):
            await late(client, ids[0])
            assert (await client.result(ids[1], timeout=10)).usage.completion_tokens == 5
    assert [request_id.rpartition("/")[0] for request_id, _ in logged(log, "request")] == [ids[1]]


async def test_a_running_job_ends_at_its_deadline_and_keeps_what_it_published(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    model = save_model(tmp_path / "slow", {"step_s": 0.02, "log": str(log)})
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock has gone mad
    async with Client(redis_url) as client, consuming(redis_url, model) as consumer:
        await client.result(await client.submit(job("warm", 1)), timeout=30)
        job_id = await client.submit(job("long", deadline_s=2.0, stream=True))
        events = [event async for _, event in client.stream(job_id)]
        assert len(events) > 2
        assert all(isinstance(event, Tokens) for event in events[:-1])
        ended = events[-1]
        assert isinstance(ended, Failed)
        assert ended.error.type == "deadline_exceeded"
        assert consumer.num_running == 0
        async with asyncio.timeout(20):
            while not logged(log, "abort"):  # noqa: ASYNC110 - a file has no event for this
                await asyncio.sleep(0.01)
    assert await redis.xlen(Keys().jobs("standard")) == 0


async def test_jobs_that_wait_in_the_engine_end_as_well(redis_url: str, tmp_path: Path) -> None:
    """One job holds the only row and the engine takes ages for a step: nothing but the timer tells."""
    model = save_model(tmp_path / "slow", {"step_s": 3.0})
    async with Client(redis_url) as client, consuming(redis_url, model, max_num_seqs=1, grace_s=0):
        ids = await client.submit_many([job("first"), job("waits", 5, 0.5), job("also waits", 5, 0.6)])
        begun = time.monotonic()
        for job_id in ids[1:]:
            await late(client, job_id)
        assert time.monotonic() - begun < 3.0, "before the step was over"
