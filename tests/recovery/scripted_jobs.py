"""Jobs for the scripted engine, whose answers are known beforehand, and what must hold at their end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import redis
from msgspec import Struct

from penstock.client import Client
from penstock.keys import GROUP, Keys
from penstock.messages import Job, SamplingParams, decode_heartbeat
from tests.conftest import Server
from tests.consumer.scripted_engine import logged, token_at
from tests.recovery.processes import check_stream, events_of

LANE = Keys().jobs("standard")
NUM_TOKENS = 40
TIMEOUT_S = 30


class Submitted(Struct, frozen=True):
    """A job on its way."""

    id: str
    job: Job

    @property
    def answer(self) -> list[str]:
        """Its samples' texts, whatever happens to who runs it."""
        assert self.job.prompt is not None
        prompt, params = list(self.job.prompt.encode()), self.job.sampling_params
        positions = range(params.max_tokens or 0)
        return [
            "".join(chr(token_at(prompt, position, n)) for position in positions) for n in range(params.n)
        ]


def jobs(count: int, num_tokens: int = NUM_TOKENS) -> list[Job]:
    """Every other one streamed, and every fifth with three samples."""
    params = [SamplingParams(max_tokens=num_tokens, n=3 if n % 5 == 0 else 1) for n in range(count)]
    return [Job(prompt=f"job {n}", stream=n % 2 == 0, sampling_params=params[n]) for n in range(count)]


def long_jobs(count: int, num_tokens: int) -> list[Job]:
    """Streamed: each has a checkpoint wherever it stops."""
    params = SamplingParams(max_tokens=num_tokens)
    return [Job(prompt=f"long job {n}", stream=True, sampling_params=params) for n in range(count)]


async def submit(client: Client, jobs: Sequence[Job]) -> list[Submitted]:
    """Enqueue them."""
    ids = await client.submit_many(jobs)
    return [Submitted(job_id, job) for job_id, job in zip(ids, jobs, strict=True)]


async def until_ended(client: Client, submitted: Sequence[Submitted], count: int | None = None) -> None:
    """Wait until `count` of the jobs have ended, all of them by default."""
    async with asyncio.timeout(TIMEOUT_S):
        pending = {asyncio.create_task(client.result(one.id)) for one in submitted}
        ended = 0
        while ended < (len(submitted) if count is None else count):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            ended += len(done)
            for task in done:
                task.result()
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def until_published(client: Client, one: Submitted, count: int = 1) -> None:
    """Wait until so many events of a streamed job are out."""
    async with asyncio.timeout(TIMEOUT_S):
        stream = client.stream(one.id)
        for _ in range(count):
            await anext(stream)
        await stream.aclose()


def check_all(server: Server, submitted: Sequence[Submitted]) -> None:
    """Each ended once and as if undisturbed, and nothing is left of them but their results."""
    with server.client() as redis:
        for one in submitted:
            done = check_stream(events_of(redis, one.id))
            assert [output.text for output in done.outputs] == one.answer, one
        check_nothing_is_left(redis)


def check_nothing_is_left(server: redis.Redis) -> None:
    """No entry, no lease, nobody who holds one."""
    assert server.xlen(LANE) == 0
    assert server.xpending(LANE, GROUP)["pending"] == 0
    holders = [info for info in server.xinfo_consumers(LANE, GROUP) if info["pending"]]
    assert holders == []


def requested(model: Path) -> list[str]:
    """Ids of all requests that an engine was given."""
    log = model / "requests.log"
    return [request_id for request_id, _ in logged(log, "request")] if log.exists() else []


async def until_ready(server: Server, count: int) -> None:
    """Wait until so many consumers can take jobs."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with server.client() as redis:
                beats = map(decode_heartbeat, redis.hvals(Keys().consumers))
                if sum(beat.phase == "ready" for beat in beats) == count:
                    return
            await asyncio.sleep(0.05)
