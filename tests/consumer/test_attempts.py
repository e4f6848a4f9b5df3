"""Failures that are worth another try: tried again, counted, and ended as dead letters at the last."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from redis.asyncio import Redis

from consumer.engine_process import EngineStartFailed
from consumer.failures import error_of, retry_delay_ms
from consumer.running import RunningJob
from penstock.client import Client
from penstock.dead import DeadLetter, read_letters
from penstock.errors import JobFailed
from penstock.keys import Keys
from penstock.link import Link
from penstock.messages import ERROR_TYPES, Done, Job, SamplingParams
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.running import consuming, make_consumer
from tests.consumer.scripted_engine import logged, token_at
from tests.recovery.processes import check_stream, events_of

SLIPS = ord("!")


def asked(prompt: str, num_tokens: int = 20, *, stream: bool = False, max_attempts: int | None = None) -> Job:
    params = SamplingParams(max_tokens=num_tokens)
    return Job(prompt=prompt, stream=stream, max_attempts=max_attempts, sampling_params=params)


def expected_text(prompt: str, num_tokens: int = 20) -> str:
    ids = list(prompt.encode())
    return "".join(chr(token_at(ids, position)) for position in range(num_tokens))


async def dead_letters(redis_url: str) -> list[DeadLetter]:
    link = Link(redis_url)
    letters = await read_letters(link, Keys(), "0-0", 100)
    await link.aclose()
    return letters


async def failure_of(client: Client, job_id: str) -> str:
    with pytest.raises(JobFailed) as failure:
        await client.result(job_id, timeout=20)
    assert failure.value.error.type == "engine_error"
    assert failure.value.error.retryable
    return failure.value.error.message


def test_delays_double_are_spread_and_have_a_bound() -> None:
    random.seed(0)
    for failures in range(40):
        longest = min(1000 * 2**failures, 30_000)
        delays = [retry_delay_ms(1.0, failures, 30_000) for _ in range(200)]
        assert 0 <= min(delays) < 0.2 * longest
        assert 0.8 * longest < max(delays) <= longest
    assert retry_delay_ms(0.0, 3, 30_000) == 0


def test_which_errors_are_worth_another_try() -> None:
    assert [kind for kind in ERROR_TYPES if error_of(kind, "").retryable] == ["engine_error"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_job_that_slips_once_is_tried_again_and_goes_on(
    server: Server, redis: Redis, redis_url: str, tmp_path: Path, stream: bool
) -> None:
    log = tmp_path / "log"
    script = {"fails": SLIPS, "fail_runs": 1, "fail_at": 12, "step_s": 0.003, "log": str(log)}
    model = save_model(tmp_path / "model", script)
    settings = {"retry_delay_s": 0.01, "coalesce_ms": 0, "checkpoint_tokens": 5}
    async with Client(redis_url) as client, consuming(redis_url, model, **settings):
        job_id = await client.submit(asked("slips!", stream=stream))
        done = await client.result(job_id, timeout=10)
        assert done.text == expected_text("slips!")
    (_, first), (second_id, second) = logged(log, "request")
    assert first == {"0": 0}
    assert second_id == f"{job_id}/2"
    assert second["0"] in ((12,) if stream else (10,)), "it went on after what it had published"
    with server.client() as plain:
        assert isinstance(check_stream(events_of(plain, job_id)), Done)
    assert not await redis.exists(Keys().attempts)
    assert await dead_letters(redis_url) == []


@pytest.mark.parametrize(("allowed", "runs"), [(None, 3), (1, 1), (2, 2)])
async def test_at_the_last_attempt_it_ends_with_its_history(
    redis: Redis, redis_url: str, tmp_path: Path, allowed: int | None, runs: int
) -> None:
    log = tmp_path / "log"
    model = save_model(tmp_path / "model", {"fails": SLIPS, "fail_runs": 99, "log": str(log)})
    async with Client(redis_url) as client, consuming(redis_url, model, retry_delay_s=0.01):
        job_id = await client.submit(asked("slips!", max_attempts=allowed))
        other = await client.submit(asked("does not"))
        assert await failure_of(client, job_id) == "it slipped"
        assert (await client.result(other, timeout=10)).text == expected_text("does not")
    assert len([request_id for request_id, _ in logged(log, "request") if job_id in request_id]) == runs
    (letter,) = await dead_letters(redis_url)
    assert letter.job_id == job_id
    assert [attempt.error.message for attempt in letter.attempts] == ["it slipped"] * runs
    assert await redis.xlen(Keys().jobs("standard")) == 0


@pytest.mark.parametrize("step", [1, 2, 3])
async def test_several_poisons_cost_no_healthy_job_and_no_consumer(
    redis_url: str, tmp_path: Path, step: int
) -> None:
    """Late ones too, and with more deaths in all than a consumer bears of an engine that can do nothing."""
    script = {"poison_tokens": [SLIPS], "poison_step": step, "step_s": 0.005}
    model = save_model(tmp_path / "mortal", script)
    healthy, poisons = [f"good {n}" for n in range(4)], [f"poison {n}!" for n in range(3)]
    async with Client(redis_url) as client, consuming(redis_url, model, retry_delay_s=0.01):
        mixed = [prompt for pair in zip(healthy, [*poisons, ""], strict=True) for prompt in pair if prompt]
        jobs = [asked(prompt, 400 if prompt in healthy else 40) for prompt in mixed]
        ids = dict(zip(mixed, await client.submit_many(jobs), strict=True))
        for prompt in poisons:
            assert await failure_of(client, ids[prompt]) == "the engine dies when it runs this job"
        for prompt in healthy:
            assert (await client.result(ids[prompt], timeout=30)).text == expected_text(prompt, 400)
    letters = await dead_letters(redis_url)
    assert {letter.job_id for letter in letters} == {ids[prompt] for prompt in poisons}


async def test_an_engine_that_runs_nothing_ends_its_consumer_and_not_the_queue(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "mortal", {"poison_tokens": [SLIPS]})
    consumer = make_consumer(redis_url, model, retry_delay_s=0.01)
    async with Client(redis_url) as client:
        await client.submit_many([asked(f"any {n}!") for n in range(20)])
        with pytest.raises(EngineStartFailed, match="died 9 times in a row"):
            await asyncio.wait_for(consumer.run(), 60)
    assert await dead_letters(redis_url) == []
    assert await redis.xlen(Keys().jobs("standard")) == 20


async def test_an_internal_error_is_worth_another_try(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [0]
    add = RunningJob.add

    def break_once(job: RunningJob, output: object) -> bool:
        if job.job.custom_id == "broken" and job.num_tokens > 8 and not broken[0]:
            broken[0] += 1
            raise RuntimeError("out of luck")
        return add(job, output)  # type: ignore[arg-type] - passed on

    monkeypatch.setattr(RunningJob, "add", break_once)
    model = save_model(tmp_path / "model")
    async with Client(redis_url) as client, consuming(redis_url, model, retry_delay_s=0.01):
        job = Job(prompt="x", custom_id="broken", sampling_params=SamplingParams(max_tokens=20))
        done = await client.result(await client.submit(job), timeout=10)
    assert done.text == expected_text("x")
    assert broken == [1]


async def test_poison_returns_alone_and_costs_nobody_else_anything(redis_url: str, tmp_path: Path) -> None:
    """A later attempt kills the engine once, and once more if others still run: nobody else is blamed."""
    log = tmp_path / "log"
    model = save_model(tmp_path / "mortal", {"poison_tokens": [SLIPS], "step_s": 0.002, "log": str(log)})
    settings = {"retry_delay_s": 0.01, "lease_s": 60}
    async with Client(redis_url) as client, consuming(redis_url, model, **settings):
        ids = await client.submit_many([asked(f"good {n}", 40) for n in range(6)])
        poison = await client.submit(asked("poison!"))
        assert await failure_of(client, poison) == "the engine dies when it runs this job"
        for n, job_id in enumerate(ids):
            assert (await client.result(job_id, timeout=20)).text == expected_text(f"good {n}", 40)
    runs = [request_id for request_id, _ in logged(log, "request")]
    of_poison = [request_id for request_id in runs if request_id.startswith(poison)]
    for attempt in (f"{poison}/2", f"{poison}/3"):
        assert of_poison.count(attempt) in (1, 2), "a later attempt joins by itself"
    (letter,) = await dead_letters(redis_url)
    assert letter.job_id == poison
    assert len(letter.attempts) == 3
