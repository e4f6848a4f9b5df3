"""Jobs that change hands: where they go on, and what becomes of checkpoints that nobody asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from consumer.broker import Broker
from consumer.consumer import Consumer
from consumer.lease import Lease
from penstock.client import Client
from penstock.keys import GROUP, Keys
from penstock.messages import Done, Event, Job, SamplingParams, Tokens, decode_event
from penstock.status import JobStatus, Leased, Released
from tests.consumer.models import save_model
from tests.consumer.running import consuming, make_consumer
from tests.consumer.scripted_engine import logged, token_at

LANE = Keys().jobs("standard")


def asked(num_tokens: int = 100, *, stream: bool = False, **params: Any) -> Job:
    return Job(
        prompt="long",
        stream=stream,
        return_token_ids=True,
        sampling_params=SamplingParams(max_tokens=num_tokens, **params),
    )


def expected_text(num_tokens: int, sample: int = 0) -> str:
    return "".join(chr(token_at(list(b"long"), position, sample)) for position in range(num_tokens))


async def events_of(redis: Redis, job_id: str) -> list[tuple[str, Event]]:
    entries = await redis.xrange(Keys().result(job_id))
    return [(entry_id.decode(), decode_event(fields[b"event"])) for entry_id, fields in entries]


async def until_published(redis: Redis, job_id: str, count: int) -> None:
    """Wait until the job's stream says that so many tokens are out."""
    async with asyncio.timeout(10):
        while True:
            last = await redis.xrevrange(Keys().result(job_id), count=1)
            if last and int(last[0][0].partition(b"-")[0]) >= count:
                return
            await asyncio.sleep(0.01)


async def until_status(client: Client, job_id: str, wanted: type[JobStatus]) -> None:
    """Wait until the job is in this state."""
    async with asyncio.timeout(10):
        while True:
            if isinstance(await client.status(job_id), wanted):
                return
            await asyncio.sleep(0.01)


async def kill(consumer: Consumer, running: asyncio.Task[None]) -> None:
    """End it without a word: nothing is published or released."""
    consumer._broker.retire = lambda name, spare="": asyncio.sleep(0, 0)  # type: ignore[method-assign, assignment] - as if dead
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("params", [{}, {"n": 3, "logprobs": 1, "prompt_logprobs": 2}])
async def test_a_job_that_does_not_stream_goes_on_from_its_checkpoint(
    redis: Redis, redis_url: str, tmp_path: Path, params: dict[str, Any]
) -> None:
    log = tmp_path / "log"
    slow = save_model(tmp_path / "model", {"step_s": 0.01, "log": str(log)})
    count = params.get("n", 1)
    async with Client(redis_url) as client:
        whole_id = await client.submit(asked(**params))
        async with consuming(redis_url, slow):
            whole = await client.result(whole_id, timeout=20)
        first = make_consumer(redis_url, slow, lease_s=0.5, checkpoint_tokens=20 * count)
        running = asyncio.create_task(first.run())
        job_id = await client.submit(asked(**params))
        await until_published(redis, job_id, 40 * count)
        await kill(first, running)
        published = await events_of(redis, job_id)
        assert len(published) < 5 * count, "checkpoints are sparse"
        async with consuming(redis_url, slow, lease_s=0.5):
            done = await client.result(job_id, timeout=20)
        ((last_id, last),) = await events_of(redis, job_id)
    assert last == done
    assert last_id == f"{100 * count}-1"
    assert done.outputs == whole.outputs
    assert done.prompt_logprobs == whole.prompt_logprobs
    _, begun, resumed = (samples for _, samples in logged(log, "request"))
    assert set(begun.values()) == {0}
    assert all(have >= 20 for have in resumed.values())
    assert sum(resumed.values()) == int(published[-1][0].partition("-")[0])


async def test_time_makes_checkpoints_too(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    slow = save_model(tmp_path / "model", {"step_s": 0.01})
    async with (
        Client(redis_url) as client,
        consuming(redis_url, slow, checkpoint_tokens=10_000, checkpoint_s=0.2),
    ):
        job_id = await client.submit(asked())
        await until_published(redis, job_id, 1)
        (_, first) = (await events_of(redis, job_id))[0]
        assert isinstance(first, Tokens)
        assert len(first.token_ids) > 5
        assert (await client.result(job_id, timeout=10)).text == expected_text(100)


async def test_a_row_leaves_no_checkpoint_behind(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", {"step_s": 0.001})
    async with Client(redis_url) as client, consuming(redis_url, model, checkpoint_tokens=10):
        batch = await client.create_batch()
        await batch.submit_many([asked(50) for _ in range(3)])
        ended = 0
        async for row in batch.done(block_s=10):
            assert isinstance(row.event, Done)
            ended += 1
            if ended == 3:
                break
    assert not await redis.keys("*:result:*")


def twice(consumer: Consumer) -> None:
    consumer.stop()
    consumer.stop()


@pytest.mark.parametrize("stop", [Consumer.stop, twice], ids=["grace over", "second signal"])
@pytest.mark.parametrize("stream", [True, False])
async def test_who_drains_leaves_all_that_it_has(
    redis: Redis, redis_url: str, tmp_path: Path, stop: Callable[[Consumer], None], stream: bool
) -> None:
    log = tmp_path / "log"
    slow = save_model(tmp_path / "model", {"step_s": 0.01, "log": str(log)})
    async with Client(redis_url) as client:
        # Neither time nor tokens would have made an event by then.
        settings = {"coalesce_ms": 60_000, "checkpoint_s": 600, "checkpoint_tokens": 10_000}
        grace_s = 0.2 if stop is Consumer.stop else 600
        async with consuming(redis_url, slow, grace_s=grace_s, **settings) as first:
            job_id = await client.submit(asked(stream=stream))
            async with asyncio.timeout(10):
                while not log.exists() or not logged(log, "request"):  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            stop(first)
        (pending,) = await redis.xpending_range(LANE, GROUP, "-", "+", 10)
        assert pending["consumer"] == b"-", "released for others to take at once"
        had = sum(len(event.token_ids) for _, event in await events_of(redis, job_id))  # type: ignore[union-attr] - tokens
        assert had > (1 if stream else 0)  # of a stream, the first token went out at once
        async with consuming(redis_url, slow):
            done = await client.result(job_id, timeout=10)
        assert done.text == expected_text(100)
        assert logged(log, "request")[1][1] == {"0": had}


@pytest.mark.parametrize("stream", [True, False])
async def test_another_model_goes_on_only_where_somebody_read(
    redis: Redis, redis_url: str, tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    script = {"step_s": 0.01, "log": str(log)}
    old = save_model(tmp_path / "model", script | {"fingerprint": "fp16"})
    settings = {"checkpoint_tokens": 30, "coalesce_ms": 0}
    async with Client(redis_url) as client:
        job_id = await client.submit(asked(stream=stream))
        async with consuming(redis_url, old, grace_s=0, **settings):
            await until_published(redis, job_id, 30)
        had = int((await events_of(redis, job_id))[-1][0].partition("-")[0])
        save_model(tmp_path / "model", script | {"fingerprint": "int8"})
        # Dies as well, and with checkpoints of its own.
        second = make_consumer(redis_url, old, lease_s=0.5, **settings)
        running = asyncio.create_task(second.run())
        await until_published(redis, job_id, had + 30)
        await kill(second, running)
        between = await events_of(redis, job_id)
        async with consuming(redis_url, old, lease_s=0.5):
            done = await client.result(job_id, timeout=10)
        events = await events_of(redis, job_id)
    assert done.text == expected_text(100)
    assert done.fingerprint == "int8"
    _, resumed, again = (samples["0"] for _, samples in logged(log, "request"))
    makers = [event.fingerprint for _, event in between if isinstance(event, Tokens)]
    assert len([record for record in caplog.records if "job " in record.message]) == (2 if stream else 1)
    if stream:
        assert done.resumed_from == ["fp16"]
        assert resumed == had
        assert set(makers) == {"fp16", "int8"}
        assert events[: len(between)] == between, "nothing that was read has changed"
        assert events[-1][0] == "100-1"
    else:
        assert done.resumed_from == []
        assert resumed == 0
        assert set(makers) == {"int8"}, "what was there is dropped by the first event of the new model"
        assert 0 < again < 100
        assert [event_id for event_id, _ in events] == [f"{had + 100}-1"], "ids never go back"


async def test_a_job_whose_tokens_are_all_out_still_gets_its_prompts_log_probabilities(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Its consumer died between the last tokens and the end; a stop string tells that nothing is missing."""
    model = save_model(tmp_path / "model")
    stop = expected_text(26)[5:8]
    job = asked(stream=True, stop=[stop], include_stop_str_in_output=True, prompt_logprobs=2)
    async with Client(redis_url) as client:
        async with consuming(redis_url, model):
            whole_id = await client.submit(job)
            whole = await client.result(whole_id, timeout=10)
        *tokens, _ = await redis.xrange(Keys().result(whole_id))
        job_id = await client.submit(job)
        for entry_id, fields in tokens:
            await redis.xadd(Keys().result(job_id), fields, id=entry_id)
        entry = job_id.split(".")[1]
        await redis.xreadgroup(GROUP, "dead.00", {LANE: ">"})
        await redis.xclaim(LANE, GROUP, "-", 0, [entry], idle=10**6, justid=True)
        async with consuming(redis_url, model):
            done = await client.result(job_id, timeout=10)
    assert done.outputs == whole.outputs
    assert done.prompt_logprobs == whole.prompt_logprobs
    assert done.prompt_logprobs


class LateBroker(Broker):
    """Claims are carried out; the answers of all but the first never come."""

    answers = 1

    async def claim(self, credit: int) -> list[Lease]:
        leases = await super().claim(credit)
        if leases:
            self.answers -= 1
        if self.answers < 0:
            await asyncio.Event().wait()
        return leases


async def test_a_drain_gives_back_what_a_claim_under_way_has_taken(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    slow = save_model(tmp_path / "slow", {"step_s": 0.05})
    async with Client(redis_url) as client:
        running = await client.submit(asked(60, stream=True))
        consumer = make_consumer(redis_url, slow, grace_s=30, broker_type=LateBroker)
        task = asyncio.create_task(consumer.run())
        await until_published(redis, running, 1)
        unheard = await client.submit(asked(5))
        await until_status(client, unheard, Leased)
        consumer.stop()
        await until_status(client, unheard, Released)
        assert isinstance(await client.status(running), Leased), "it has its grace"
        assert (await client.result(running, 20)).text == expected_text(60)
        await task
