"""What a consumer's metrics say, read over HTTP, against what it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from consumer.consumer import Consumer
from consumer.job_watch import JobWatch
from consumer.settings import Settings
from engine.config import EngineConfig
from penstock.client import Client
from penstock.errors import JobFailed, PenstockError
from penstock.keys import Keys
from penstock.messages import Job, SamplingParams
from tests.consumer.in_process import TINY
from tests.consumer.models import save_model
from tests.consumer.running import consuming, make_consumer
from tests.consumer.scraping import Scrape, free_port, lint, scrape

WAIT_S = 20


@asynccontextmanager
async def measured(redis_url: str, model: Path, **settings: Any) -> AsyncIterator[tuple[Client, str]]:
    """A client, and where the metrics of the consumer behind it are."""
    port = free_port()
    async with (
        consuming(redis_url, model, metrics_port=port, **settings) as consumer,
        Client(redis_url) as client,
    ):
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield client, f"http://127.0.0.1:{port}/metrics"
        watch = consumer._telemetry.observer
        assert isinstance(watch, JobWatch)
        assert len(watch) == consumer.num_running, "times are kept of jobs that have ended"


def job(prompt: str, max_tokens: int, **fields: Any) -> Job:
    return Job(prompt=prompt, sampling_params=SamplingParams(max_tokens=max_tokens), **fields)


async def until(url: str, name: str, least: float, **labels: str) -> Scrape:
    """A reading in which the value is there."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = await scrape(url)
            if found.value(name, **labels) >= least:
                return found
            await asyncio.sleep(0.3)


async def test_numbers_are_those_of_the_jobs_that_were_sent(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "scripted", {"step_s": 0.002, "eos_at": {"1": 4}})
    async with measured(redis_url, model, checkpoint_tokens=4) as (client, url):
        ids = [await client.submit(job("abcd", 10)) for _ in range(6)]
        ids.append(await client.submit(job("abcdef", 10, stream=True)))
        two = SamplingParams(max_tokens=8, n=2)
        ids.append(await client.submit(Job(prompt="ab", sampling_params=two)))
        ids.append(await client.submit(Job(prompt="abc", kind="score")))
        for job_id in ids:
            await client.result(job_id, timeout=WAIT_S)
        bad = await client.submit(Job(prompt="x", model="other"))
        with pytest.raises(JobFailed):
            await client.result(bad, timeout=WAIT_S)
        found = await until(url, "vllm:e2e_request_latency_seconds_count", 10)

    generated = 7 * 10 + 8 + 5  # the second of two outputs ends at its fifth token
    assert found.value("vllm:generation_tokens_total", model_name="scripted") == generated
    assert found.value("vllm:prompt_tokens_total") == 6 * 4 + 6 + 2
    assert found.value("vllm:prefix_cache_hits_total") == 6 * 2 + 3 + 1
    assert found.value("vllm:request_success_total", finished_reason="length") == 8
    assert found.value("vllm:request_success_total", finished_reason="stop") == 2
    assert found.value("vllm:request_success_total", finished_reason="error") == 1
    assert found.value("vllm:request_success_total", finished_reason="abort") == 0
    assert found.value("vllm:time_to_first_token_seconds_count") == 8
    assert found.value("vllm:inter_token_latency_seconds_count") == generated - 9
    assert found.value("vllm:inter_token_latency_seconds_sum") >= 0.002 * (generated - 9)
    assert found.value("vllm:request_queue_time_seconds_count") == 10
    assert found.value("vllm:request_prefill_time_seconds_count") == 9
    assert found.value("vllm:request_decode_time_seconds_count") == 8
    assert found.value("vllm:request_generation_tokens_sum") == generated
    assert found.value("vllm:request_prompt_tokens_sum") == 6 * 4 + 6 + 2 + 3
    assert found.value("penstock_failed_jobs_total", error_type="model_not_served") == 1
    assert found.value("penstock_claimed_jobs_total") == 10
    assert found.value("penstock_reclaimed_jobs_total") == 0
    assert found.value("penstock_checkpoints_total") >= 7
    assert found.value("penstock_published_events_total") > found.value("penstock_checkpoints_total")
    assert found.value("penstock_commit_batch_size_sum") == 10
    assert found.value("penstock_leases") == found.value("vllm:num_requests_running") == 0
    steps = found.value("penstock_engine_step_seconds_count")
    assert found.value("penstock_engine_step_seconds_sum") == pytest.approx(0.001 * steps)
    assert found.value("vllm:iteration_tokens_total_count") == steps
    assert found.value("vllm:iteration_tokens_total_sum") >= generated
    assert lint(found.families) == []


async def test_attempts_deaths_and_lost_leases_are_counted(
    redis: Redis, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = {"fails": ord("f"), "fail_at": 1, "fail_runs": 1, "die_after_tokens": 30, "step_s": 0.01}
    model = save_model(tmp_path / "scripted", script)
    async with measured(redis_url, model, retry_delay_s=0.05, lease_s=2) as (client, url):
        retried = await client.submit(job("f", 3))
        await client.result(retried, timeout=WAIT_S)
        with pytest.raises(JobFailed):
            await client.result(await client.submit(job("f", 3, max_attempts=1)), timeout=WAIT_S)
        await client.result(await client.submit(job("a", 60)), timeout=WAIT_S)
        gone = await client.submit(job("a", 500))
        await until(url, "penstock_leases", 1)
        await client.cancel(gone)
        taken = await client.submit(job("b", 500))
        await until(url, "penstock_leases", 1)
        await redis.xack(Keys().jobs("standard"), "penstock", taken.split(".")[1])  # by hand
        found = await until(url, "penstock_lost_leases_total", 1)

    told = [record.levelname for record in caplog.records if getattr(record, "job", None) == retried]
    assert told == ["WARNING"]
    assert found.value("penstock_failed_attempts_total", error_type="engine_error") == 2
    assert found.value("penstock_dead_lettered_jobs_total", error_type="engine_error") == 1
    assert found.value("penstock_reclaimed_jobs_total") == 1
    assert found.value("penstock_engine_restarts_total") == 1
    assert found.value("vllm:request_success_total", finished_reason="abort") >= 1
    assert found.value("vllm:generation_tokens_total") > 60


async def test_series_are_bounded_whatever_jobs_say(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "scripted")
    async with measured(redis_url, model) as (client, url):
        await client.result(await client.submit(job("a", 2)), timeout=WAIT_S)
        with pytest.raises(JobFailed):
            await client.result(await client.submit(Job(prompt="a", model="m")), timeout=WAIT_S)
        before = (await until(url, "vllm:e2e_request_latency_seconds_count", 2)).num_series
        jobs = [
            Job(
                prompt=f"p{number}",
                custom_id=f"c{number}",
                model=f"m{number}" if number % 3 == 0 else None,
                sampling_params=SamplingParams(max_tokens=1 + number % 7),
            )
            for number in range(300)
        ]
        for number, one in enumerate(jobs):
            await client.submit(one, f"lane{number % 20}")
        after = await until(url, "vllm:e2e_request_latency_seconds_count", 302)
    assert after.num_series == before


async def test_what_is_no_scrape_is_refused_and_openmetrics_is_spoken(redis_url: str, tmp_path: Path) -> None:
    async with measured(redis_url, save_model(tmp_path / "scripted")) as (_, url):
        async with httpx.AsyncClient(timeout=10) as client:
            assert (await client.get(url.replace("/metrics", "/"))).status_code == 404
            assert (await client.post(url)).status_code == 405
            assert (await client.head(url)).headers["content-type"].startswith("text/plain")
            kind = "application/openmetrics-text; version=1.0.0"
            reply = await client.get(url, headers={"accept": kind})
            assert reply.headers["content-type"].startswith("application/openmetrics-text")
            assert reply.text.endswith("# EOF\n")
        port = int(url.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_a_taken_port_ends_the_consumer_before_it_takes_jobs(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "scripted")
    async with measured(redis_url, model) as (_, url):
        second: Consumer = make_consumer(redis_url, model, metrics_port=int(url.split(":")[2].split("/")[0]))
        with pytest.raises(PenstockError, match="--metrics-port names another port"):
            await second.run()


async def test_an_engine_tells_what_its_steps_and_its_cache_did(redis_url: str) -> None:
    port = free_port()
    engine = EngineConfig(model=str(TINY), max_num_seqs=8, max_num_batched_tokens=64, num_threads=1)
    consumer = Consumer(Settings(engine=engine, redis=redis_url, metrics_port=port))
    running = asyncio.create_task(consumer.run())
    prompt, params = "What is 12 + 30?" * 8, SamplingParams(max_tokens=6, ignore_eos=True, temperature=0)
    try:
        async with Client(redis_url) as client:
            used = [
                (
                    await client.result(await client.submit(Job(prompt=prompt, sampling_params=params)), 60)
                ).usage
                for _ in range(2)
            ]
            url = f"http://127.0.0.1:{port}/metrics"
            found = await until(url, "vllm:e2e_request_latency_seconds_count", 2)
            two = SamplingParams(max_tokens=2, n=2, ignore_eos=True)
            twice = await client.result(await client.submit(Job(prompt="9 + 9", sampling_params=two)), 60)
            later = await until(url, "vllm:e2e_request_latency_seconds_count", 3)
    finally:
        consumer.stop()
        await running
    num_prompt, num_cached = used[0].prompt_tokens, used[1].cached_tokens
    assert num_cached > 0
    assert found.value("vllm:prompt_tokens_total") == 2 * num_prompt
    assert found.value("vllm:prefix_cache_hits_total") == num_cached
    assert found.value("vllm:generation_tokens_total") == 12
    # The last token of an output is never run through the model.
    computed = 2 * num_prompt - num_cached + 2 * 5
    assert found.value("vllm:iteration_tokens_total_sum") == computed
    steps = found.value("penstock_engine_step_seconds_count")
    assert 2 * 6 + 1 <= steps <= computed
    assert found.value("penstock_engine_step_seconds_sum") > 0
    assert found.value("vllm:kv_cache_usage_perc") == 0  # what is only remembered is free
    assert found.value("penstock_engine_ready") == 1
    # A prompt counts once, however many outputs it has.
    assert later.value("vllm:prompt_tokens_total") == 2 * num_prompt + twice.usage.prompt_tokens
    assert later.value("vllm:generation_tokens_total") == 12 + 2 * 2
