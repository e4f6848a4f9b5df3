"""One consumer against a real server, with the scripted engine: what goes in comes out, once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from consumer.consumer import ModelDisagreement
from consumer.engine_process import EngineStartFailed
from penstock.client import Client
from penstock.errors import JobFailed, ServerUnsuitable
from penstock.keys import GROUP, Keys
from penstock.messages import MAX_JOB_BYTES, Done, Failed, Job, SamplingParams, Tokens, decode_event
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.running import consuming, make_consumer
from tests.consumer.scripted_engine import logged, token_at

LANE = Keys().jobs("standard")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "scripted")


def expected_text(prompt: str, num_tokens: int) -> str:
    ids = list(prompt.encode())
    return "".join(chr(token_at(ids, position)) for position in range(num_tokens))


def short(prompt: str, num_tokens: int = 5, **fields: object) -> Job:
    params = SamplingParams(max_tokens=num_tokens)
    return Job(prompt=prompt, sampling_params=params, **fields)  # type: ignore[arg-type] - any field of Job


async def events_of(redis: Redis, job_id: str) -> list[tuple[str, object]]:
    entries = await redis.xrange(Keys().result(job_id))
    return [(entry_id.decode(), decode_event(fields[b"event"])) for entry_id, fields in entries]


BAD_JOBS = {
    "not json": b"{nope",
    "unknown field": b'{"promt":"x"}',
    "two prompts": b'{"prompt":"x","messages":[{"role":"user","content":"x"}]}',
    "no prompt": b"{}",
    "empty prompt": b'{"prompt":""}',
    "longer than the window": b'{"prompt":"%s"}' % (b"x" * 600),
    "negative temperature": b'{"prompt":"x","sampling_params":{"temperature":-1}}',
    "NaN": b'{"prompt":"x","sampling_params":{"temperature":NaN}}',
    "10 MB of text": b'{"prompt":"%s"}' % (b"x" * 10_000_000),
    "invalid UTF-8": b'{"prompt":"\xff\xfe"}',
    "a thousand stops": json.dumps({"prompt": "x", "sampling_params": {"stop": ["s"] * 1000}}).encode(),
    "token outside the vocabulary": b'{"prompt_token_ids":[299999]}',
    "stop token outside the vocabulary": b'{"prompt":"x","sampling_params":{"stop_token_ids":[299999]}}',
    "another model": b'{"prompt":"x","model":"someone-else"}',
    "refused by the template": b'{"messages":[{"role":"tool","content":"x"}]}',
}


async def test_each_bad_job_gets_one_failure_and_the_others_finish(
    redis: Redis, redis_url: str, model: Path
) -> None:
    bad = {
        name: f"standard.{(await redis.xadd(LANE, {'job': job})).decode()}" for name, job in BAD_JOBS.items()
    }
    nameless = f"standard.{(await redis.xadd(LANE, {'something': 'else'})).decode()}"
    async with Client(redis_url) as client, consuming(redis_url, model):
        good = await client.submit_many([short(f"good {n}", 20) for n in range(30)])
        done = [await client.result(job_id, timeout=10) for job_id in good]
        assert [d.text for d in done] == [expected_text(f"good {n}", 20) for n in range(30)]
        for name, job_id in [*bad.items(), ("no job field", nameless)]:
            with pytest.raises(JobFailed) as failure:
                await client.result(job_id, timeout=10)
            assert failure.value.error.message, name
            assert not failure.value.error.retryable
            assert len(await events_of(redis, job_id)) == 1
    assert await redis.xlen(LANE) == 0
    types = {name: (await events_of(redis, job_id))[0][1].error.type for name, job_id in bad.items()}
    assert types.pop("longer than the window") == "prompt_too_long"
    assert types.pop("another model") == "model_not_served"
    assert types.pop("10 MB of text") == "job_too_large"
    assert set(types.values()) == {"invalid_job"}
    assert len(BAD_JOBS["10 MB of text"]) > MAX_JOB_BYTES


async def test_a_raw_entry_is_a_complete_job(redis: Redis, redis_url: str, model: Path) -> None:
    job = '{"prompt":"Hello","sampling_params":{"max_tokens":3}}'
    entry = await redis.xadd(LANE, {"job": job})
    async with Client(redis_url) as client, consuming(redis_url, model):
        done = await client.result(f"standard.{entry.decode()}", timeout=10)
    assert done.text == expected_text("Hello", 3)
    assert done.outputs[0].finish_reason == "length"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 3)
    assert done.model == "scripted"


async def test_a_streamed_job_is_gapless_and_ends_as_a_whole(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "slow", {"step_s": 0.01})
    async with Client(redis_url) as client, consuming(redis_url, model, coalesce_ms=20):
        begun = time.monotonic()
        job_id = await client.submit(short("stream me", 100, stream=True, return_token_ids=True))
        events = [pair async for pair in client.stream(job_id)]
        took_s = time.monotonic() - begun
        *tokens, (last_id, done) = events
        assert isinstance(done, Done)
        assert last_id == "100-1"
        assert 3 <= len(tokens) <= took_s / 0.02 + 3, "coalesced, but not held back until the end"
        text, ids = "", list[int]()
        for event_id, event in tokens:
            assert isinstance(event, Tokens)
            assert event.text_offset == len(text)
            text += event.text
            ids += event.token_ids
            assert event_id == f"{len(ids)}-0"
        assert text == done.text == expected_text("stream me", 100)
        assert ids == done.outputs[0].token_ids
        middle = tokens[len(tokens) // 2][0]
        assert [pair async for pair in client.stream(job_id, after=middle)] == events[len(tokens) // 2 + 1 :]


async def test_a_stop_string_ends_the_job_and_is_left_out(redis_url: str, model: Path) -> None:
    whole = expected_text("abc", 40)
    job = Job(
        prompt="abc", stream=True, sampling_params=SamplingParams(max_tokens=400, stop=["?", whole[10:13]])
    )
    async with Client(redis_url) as client, consuming(redis_url, model):
        job_id = await client.submit(job)
        done = await client.result(job_id, timeout=10)
        streamed = [event async for _, event in client.stream(job_id)]
    assert done.text == whole[:10]
    assert done.outputs[0].finish_reason == "stop"
    assert done.outputs[0].stop_reason == whole[10:13]
    assert done.usage.completion_tokens == 13
    assert "".join(event.text for event in streamed if isinstance(event, Tokens)) == whole[:10]


async def test_it_never_claims_more_than_it_can_admit_soon(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "slow", {"step_s": 0.01})
    most = 0
    async with (
        Client(redis_url) as client,
        consuming(redis_url, model, max_num_seqs=4, lookahead=2),
    ):
        ids = await client.submit_many([short(f"{n}", 5) for n in range(60)])
        last = asyncio.create_task(client.result(ids[-1], timeout=20))
        while not last.done():
            groups = await redis.xinfo_groups(LANE)
            most = max(most, *(group["pending"] for group in groups), 0)
            await asyncio.sleep(0.005)
        assert (await last).text == expected_text("59", 5)
    assert 4 <= most <= 6


async def test_a_cancelled_job_stops_running_and_says_nothing_more(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "slow", {"step_s": 0.01})
    async with Client(redis_url) as client, consuming(redis_url, model) as consumer:
        job_id = await client.submit(short("to be cancelled", 400, stream=True))
        follower = client.stream(job_id)
        assert isinstance((await anext(follower))[1], Tokens)
        assert await client.cancel(job_id)
        rest = [event async for _, event in follower]
        assert isinstance(rest[-1], Failed)
        assert rest[-1].error.type == "cancelled"
        async with asyncio.timeout(5):
            while consumer.num_running:  # noqa: ASYNC110 - the consumer has no event for this, and needs none
                await asyncio.sleep(0.01)
        before = await events_of(redis, job_id)
        await asyncio.sleep(0.2)
        assert await events_of(redis, job_id) == before
        assert not await client.cancel(job_id)


async def test_batch_rows_end_in_the_batch(redis: Redis, redis_url: str, model: Path) -> None:
    async with Client(redis_url) as client, consuming(redis_url, model):
        batch = await client.create_batch()
        jobs = [short(f"row {n}", 4, row=n, stream=n % 2 == 0) for n in range(20)]
        await redis.xadd(LANE, {"job": json.dumps({"batch": batch.id, "row": 20, "promt": "x"})})
        ids = await batch.submit_many(jobs)
        rows = {}
        async for row in batch.done(block_s=10):
            rows[row.row] = row
            if len(rows) == 21:
                break
        counts = await batch.counts()
    assert (counts.completed, counts.failed) == (20, 1)
    assert [rows[n].job_id for n in range(20)] == ids
    assert [rows[n].event.outputs[0].text for n in range(20)] == [
        expected_text(f"row {n}", 4) for n in range(20)
    ]
    assert isinstance(rows[20].event, Failed)
    assert not await redis.keys("*:result:*")


async def test_a_lane_declared_later_is_served(redis_url: str, model: Path) -> None:
    async with Client(redis_url) as client, consuming(redis_url, model):
        await client.result(await client.submit(short("a")), timeout=10)
        job_id = await client.submit(short("b"), lane="tenant-b")
        assert (await client.result(job_id, timeout=10)).text == expected_text("b", 5)


async def test_a_dead_engine_is_replaced_and_its_jobs_go_on(redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    script = {"step_s": 0.002, "die_after_tokens": 300, "log": str(log)}
    model = save_model(tmp_path / "mortal", script)
    async with Client(redis_url) as client, consuming(redis_url, model):
        ids = await client.submit_many([short(f"job {n}", 60, stream=True) for n in range(10)])
        done = [await client.result(job_id, timeout=20) for job_id in ids]
    assert [d.text for d in done] == [expected_text(f"job {n}", 60) for n in range(10)]
    requests = logged(log, "request")
    assert len(requests) == 20
    assert all(resumed["0"] > 0 for _, resumed in requests[10:])


async def test_a_job_that_keeps_killing_the_engine_fails_alone(redis_url: str, tmp_path: Path) -> None:
    script = {"poison_tokens": [ord("!")], "step_s": 0.002, "log": str(tmp_path / "log")}
    model = save_model(tmp_path / "mortal", script)
    async with Client(redis_url) as client, consuming(redis_url, model):
        good = [short(f"good {n}", 30, stream=n % 2 == 0) for n in range(12)]
        ids = await client.submit_many([*good[:6], short("poison!"), short("another!"), *good[6:]])
        poison = [ids.pop(7), ids.pop(6)]
        for job_id in poison:
            with pytest.raises(JobFailed, match="the engine dies when it runs this job"):
                await client.result(job_id, timeout=20)
        done = [await client.result(job_id, timeout=20) for job_id in ids]
        late = await client.result(await client.submit(short("late")), timeout=10)
    assert [d.text for d in done] == [expected_text(f"good {n}", 30) for n in range(12)]
    assert late.text == expected_text("late", 5)


async def test_jobs_that_come_while_the_engine_restarts_are_run(redis_url: str, tmp_path: Path) -> None:
    script = {"step_s": 0.002, "die_after_tokens": 100, "restart_s": 0.5}
    model = save_model(tmp_path / "mortal", script)
    async with Client(redis_url) as client, consuming(redis_url, model, lease_s=60):
        ids = []
        for n in range(40):  # before, during and after the restart
            ids.append(await client.submit(short(f"job {n}", 20)))
            await asyncio.sleep(0.02)
        done = [await client.result(job_id, timeout=20) for job_id in ids]
    assert [d.text for d in done] == [expected_text(f"job {n}", 20) for n in range(40)]


async def test_an_engine_that_only_dies_ends_the_consumer_and_not_the_queue(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "broken", {"poison_tokens": list(range(256))})
    async with Client(redis_url) as client:
        await client.submit_many([short(f"job {n}") for n in range(60)])
        with pytest.raises(EngineStartFailed, match="without finishing a job"):
            await make_consumer(redis_url, model).run()
    assert await redis.xlen(LANE) >= 50
    pending = await redis.xpending_range(LANE, GROUP, "-", "+", 100)
    assert {entry["consumer"] for entry in pending} == {b"-"}, "released for whoever has a better engine"


async def test_a_lane_declared_while_the_consumer_is_busy_is_served(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "slow", {"step_s": 0.01})
    async with Client(redis_url) as client, consuming(redis_url, model, max_num_seqs=2, lookahead=0):
        await client.submit_many([short(f"{n}", 5) for n in range(20)])
        await asyncio.sleep(0.1)
        job_id = await client.submit(short("b"), lane="tenant-b")
        assert (await client.result(job_id, timeout=10)).text == expected_text("b", 5)


async def test_a_strange_result_stream_or_heartbeat_stops_nobody(
    redis: Redis, redis_url: str, model: Path
) -> None:
    await redis.hset(Keys().consumers, "stranger", b"not a heartbeat")
    await redis.set(Keys().jobs("aaa"), "not a lane")
    await redis.hset(Keys().lanes, "aaa", "{}")
    entry = (await redis.xadd(LANE, {"job": '{"prompt":"x","stream":true}'})).decode()
    job_id = f"standard.{entry}"
    await redis.xadd(Keys().result(job_id), {"event": b'{"type":"unheard of"}'}, id="1-0")
    await redis.xgroup_create(LANE, GROUP, "0")
    await redis.xreadgroup(GROUP, "someone", {LANE: ">"})
    await redis.xclaim(LANE, GROUP, "-", 0, [entry], idle=10**6, justid=True)
    async with Client(redis_url) as client, consuming(redis_url, model, lease_s=3):
        done = await client.result(await client.submit(short("good")), timeout=10)
        assert done.text == expected_text("good", 5)
        assert (await client.result(job_id, timeout=10)).outputs[0].finish_reason == "length"


async def test_what_is_left_at_the_end_of_the_grace_is_taken_by_others_at_once(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    slow = save_model(tmp_path / "slow", {"step_s": 0.05})
    async with Client(redis_url) as client:
        async with consuming(redis_url, slow, grace_s=0.2) as first:
            job_id = await client.submit(short("long", 60, stream=True, return_token_ids=True))
            follower = client.stream(job_id)
            assert isinstance((await anext(follower))[1], Tokens)
            first.stop()
        pending = await redis.xpending_range(LANE, GROUP, "-", "+", 10)
        assert [entry["consumer"] for entry in pending] == [b"-"]
        async with consuming(redis_url, slow):
            done = await client.result(job_id, timeout=10)
        assert done.text == expected_text("long", 60)
        events = [event async for _, event in client.stream(job_id)]
        ids = [token for event in events if isinstance(event, Tokens) for token in event.token_ids]
        assert ids == done.outputs[0].token_ids
    assert not await redis.hgetall(Keys().consumers)


async def test_a_second_model_on_a_queue_is_refused(redis_url: str, model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other")
    async with Client(redis_url) as client, consuming(redis_url, model):
        await client.result(await client.submit(short("a")), timeout=10)
        with pytest.raises(ModelDisagreement, match="serves 'scripted'"):
            await make_consumer(redis_url, other).run()


async def test_an_engine_that_cannot_start_ends_the_consumer_in_words(redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(EngineStartFailed, match="exit status 1"):
        await make_consumer(redis_url, tmp_path / "missing").run()


async def test_a_flushed_server_is_served_on(redis: Redis, redis_url: str, model: Path) -> None:
    async with Client(redis_url) as client, consuming(redis_url, model, lease_s=1.0):
        await client.result(await client.submit(short("before")), timeout=10)
        await redis.flushall()
        await asyncio.sleep(0.1)
        after = await client.submit(short("after"))
        assert (await client.result(after, timeout=10)).text == expected_text("after", 5)


async def test_a_server_that_evicts_is_refused(make_server: Callable[..., Server], model: Path) -> None:
    server = make_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with pytest.raises(ServerUnsuitable, match="noeviction"):
        await make_consumer(server.url, model).run()
