"""The engine's process ends in mid-run: it costs neither the consumer nor a lease, and no client sees it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from consumer.consumer import Consumer
from consumer.settings import Settings
from engine.config import EngineConfig
from penstock.client import Client
from penstock.keys import GROUP, Keys
from penstock.messages import Completion, Job, SamplingParams
from tests.conftest import Server
from tests.consumer.in_process import TINY
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.consumer.scripted_engine import logged, token_at
from tests.recovery.processes import check_stream, events_of

LANE = Keys().jobs("standard")


def jobs(count: int, num_tokens: int) -> list[Job]:
    """Sampled, every other one streamed, every third with two samples and log-probabilities."""
    params = [
        SamplingParams(
            max_tokens=num_tokens,
            ignore_eos=True,
            seed=n,
            n=2 if n % 3 == 0 else 1,
            logprobs=1 if n % 3 == 0 else None,
        )
        for n in range(count)
    ]
    return [
        Job(prompt=f"job {n}", stream=n % 2 == 0, sampling_params=params[n], return_token_ids=True)
        for n in range(count)
    ]


@pytest.mark.parametrize("words", [{}, {"last_words": "CUDA error: out of memory"}], ids=["killed", "fatal"])
async def test_no_lease_is_lost(
    server: Server,
    redis: Redis,
    redis_url: str,
    tmp_path: Path,
    words: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = tmp_path / "log"
    script = {"step_s": 0.002, "die_after_tokens": 250, "log": str(log), **words}
    model = save_model(tmp_path / "mortal", script)
    async with Client(redis_url) as client, consuming(redis_url, model):
        ids = await client.submit_many(jobs(9, 60))
        for n, job_id in enumerate(ids):
            prompt = list(f"job {n}".encode())
            whole = "".join(chr(token_at(prompt, position)) for position in range(60))
            assert (await client.result(job_id, timeout=20)).text == whole
    requests = logged(log, "request")
    assert [request_id for request_id, _ in requests] == [f"{job_id}/1" for job_id in ids] * 2
    assert all(have > 0 for _, samples in requests[9:] for have in samples.values())
    assert all(said in caplog.text for said in words.values())
    with server.client() as plain:
        for job_id in ids:
            check_stream(events_of(plain, job_id))


async def test_an_engine_that_hangs_is_killed_and_its_jobs_go_on(
    redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_model(tmp_path / "model", {"step_s": 0.005})
    async with Client(redis_url) as client, consuming(redis_url, model, engine_timeout_s=1) as consumer:
        job_id = await client.submit(jobs(1, 200)[0])
        await anext(client.stream(job_id))
        process = consumer._engine._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        prompt = list(b"job 0")
        whole = "".join(chr(token_at(prompt, position)) for position in range(200))
        assert (await client.result(job_id, timeout=20)).text == whole
        assert consumer._engine._process is not process
    assert f"the engine process {process.pid} has work and says nothing for 1 s" in caplog.text
    assert f"the engine process {process.pid} ended (signal 9)" in caplog.text


async def test_no_engine_is_killed_while_it_has_nothing_to_do_or_loads(
    redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = {"die_after_tokens": 10, "restart_s": 1.0}
    model = save_model(tmp_path / "mortal", script)
    async with Client(redis_url) as client, consuming(redis_url, model, engine_timeout_s=0.3) as consumer:
        await client.result(await client.submit(jobs(1, 60)[0]), timeout=20)
        process = consumer._engine._process
        await asyncio.sleep(0.8)
        assert consumer._engine._process is process
    assert "says nothing" not in caplog.text


@pytest.mark.timeout(120)
async def test_sigkill_of_the_real_engine_changes_no_answer(
    server: Server, redis: Redis, redis_url: str
) -> None:
    engine = EngineConfig(model=str(TINY), max_num_seqs=16)
    consumer = Consumer(Settings(engine=engine, redis=redis_url, coalesce_ms=1))
    running = asyncio.create_task(consumer.run())
    try:
        async with Client(redis_url) as client:

            async def answers(killing: bool) -> tuple[list[str], list[list[Completion]]]:
                ids = await client.submit_many(jobs(12, 100))
                if killing:
                    await anext(client.stream(ids[0]))
                    process = consumer._engine._process
                    assert process is not None
                    os.kill(process.pid, signal.SIGKILL)
                    pending = await redis.xpending_range(LANE, GROUP, "-", "+", 100)
                    assert pending
                    assert {row["times_delivered"] for row in pending} == {1}
                return ids, [(await client.result(job_id, timeout=60)).outputs for job_id in ids]

            ids, undisturbed = await answers(killing=False)
            again, disturbed = await answers(killing=True)
    finally:
        consumer.stop()
        await asyncio.wait_for(running, 30)
    assert disturbed == undisturbed
    with server.client() as plain:
        for job_id in (*ids, *again):
            check_stream(events_of(plain, job_id))
