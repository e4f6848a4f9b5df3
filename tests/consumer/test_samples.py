"""Jobs of several samples, their log-probabilities, and how each of them ends."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from consumer.token_logprobs import LEAST_LOGPROB
from penstock.client import Client
from penstock.keys import GROUP, Keys
from penstock.messages import Done, Event, Job, SamplingParams, TokenLogprob, Tokens
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.consumer.scripted_engine import EOS, logged, token_at

LANE = Keys().jobs("standard")


def expected_text(prompt: str, num_tokens: int, sample: int) -> str:
    ids = list(prompt.encode())
    return "".join(chr(token_at(ids, position, sample)) for position in range(num_tokens))


def job(prompt: str = "abc", *, stream: bool = True, **params: Any) -> Job:
    params = {"n": 3, "max_tokens": 20, **params}
    return Job(prompt=prompt, stream=stream, return_token_ids=True, sampling_params=SamplingParams(**params))


def check(events: list[tuple[str, Event]]) -> Done:
    """Gapless, sample by sample, and the end says what the `tokens` events said."""
    *tokens, (last_id, done) = events
    assert isinstance(done, Done)
    count = 0
    texts: dict[int, str] = defaultdict(str)
    ids: dict[int, list[int]] = defaultdict(list)
    logprobs: dict[int, list[TokenLogprob]] = defaultdict(list)
    for event_id, event in tokens:
        assert isinstance(event, Tokens)
        count += len(event.token_ids)
        assert event_id == f"{count}-0"
        assert event.text_offset == len(texts[event.sample])
        texts[event.sample] += event.text
        ids[event.sample] += event.token_ids
        logprobs[event.sample] += event.logprobs or []
    assert last_id == f"{count}-1"
    assert done.usage.completion_tokens == count
    assert [output.index for output in done.outputs] == list(range(len(done.outputs)))
    for output in done.outputs:
        assert output.text == texts[output.index]
        assert output.token_ids == ids[output.index]
        assert (output.logprobs or []) == logprobs[output.index]
    return done


async def run(client: Client, asked: Job) -> Done:
    job_id = await client.submit(asked)
    async with asyncio.timeout(20):
        return check([pair async for pair in client.stream(job_id)])


async def test_samples_stream_side_by_side_and_end_in_order(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "slow", {"step_s": 0.002})
    async with Client(redis_url) as client, consuming(redis_url, model, coalesce_ms=5):
        done = await run(client, job(max_tokens=60))
        alone = await client.result(await client.submit(job(max_tokens=60, stream=False)), timeout=10)
    assert [output.text for output in done.outputs] == [expected_text("abc", 60, s) for s in range(3)]
    assert alone.outputs == done.outputs
    assert done.usage == alone.usage
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 180)
    assert done.usage.cached_tokens == 1


async def test_a_stop_string_ends_its_own_sample_and_the_engine_is_told(
    redis_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    model = save_model(tmp_path / "model", {"log": str(log), "step_s": 0.001, "eos_at": {"2": 4}})
    stop = expected_text("abc", 26, 1)[10:13]
    async with Client(redis_url) as client, consuming(redis_url, model):
        # In sample 0 the same letters come 7 tokens later.
        done = await run(client, job(stop=[stop], max_tokens=15))
    first, second, third = done.outputs
    assert (first.text, first.finish_reason) == (expected_text("abc", 15, 0), "length")
    assert (second.text, second.finish_reason) == (expected_text("abc", 10, 1), "stop")
    assert second.stop_reason == stop
    assert (third.text, third.finish_reason, third.stop_reason) == (expected_text("abc", 4, 2), "stop", None)
    assert third.token_ids is not None
    assert third.token_ids[-1] == EOS
    [(requests, samples)] = logged(log, "abort")
    assert requests == []
    assert [index for _, index in samples] == [1]


async def test_what_was_held_back_comes_with_the_samples_end_while_others_go_on(
    redis_url: str, tmp_path: Path
) -> None:
    # Sample 1 ends while its last letters may be the beginning of a stop string.
    model = save_model(tmp_path / "model", {"step_s": 0.02, "eos_at": {"1": 5}})
    held = expected_text("abc", 5, 1)[3:] + "!"
    async with Client(redis_url) as client, consuming(redis_url, model, coalesce_ms=1):
        job_id = await client.submit(job(n=2, max_tokens=40, stop=[held]))
        events = [pair async for pair in client.stream(job_id)]
    done = check(events)
    assert done.outputs[1].text == expected_text("abc", 5, 1)
    of_second = [
        at for at, (_, event) in enumerate(events) if isinstance(event, Tokens) and event.sample == 1
    ]
    assert of_second[-1] < len(events) // 2, "not only with the job's end"
    last = events[of_second[-1]][1]
    assert isinstance(last, Tokens)
    assert last.token_ids[-1] == EOS
    assert last.text.endswith(held[:-1])


async def test_log_probabilities_come_with_their_tokens(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", {"step_s": 0.001})
    async with Client(redis_url) as client, consuming(redis_url, model, coalesce_ms=2):
        done = await run(client, job(logprobs=2, prompt_logprobs=1, max_tokens=9))
        bare = await run(client, job(logprobs=0, max_tokens=9))
        none = await run(client, job(max_tokens=9))
    for output in done.outputs:
        assert output.logprobs is not None
        assert "".join(found.token for found in output.logprobs) == output.text
        for found in output.logprobs:
            assert (found.logprob, found.rank) == (-found.token_id / 64, 1)
            same, minus_infinity = found.top_logprobs
            assert (same.token_id, same.token, same.logprob) == (found.token_id, found.token, found.logprob)
            assert (minus_infinity.token, minus_infinity.logprob) == ("</s>", LEAST_LOGPROB)
    assert done.prompt_logprobs is not None
    assert [(found.token, len(found.top_logprobs)) for found in done.prompt_logprobs] == [("b", 1), ("c", 1)]
    assert bare.prompt_logprobs is None
    assert [len(output.logprobs or []) for output in bare.outputs] == [9, 9, 9]
    assert not any(found.top_logprobs for output in bare.outputs for found in output.logprobs or [])
    assert [output.logprobs for output in none.outputs] == [None] * 3


async def test_log_probabilities_end_where_the_tokens_do(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    stop = expected_text("abc", 10, 0)[4:6]
    async with Client(redis_url) as client, consuming(redis_url, model):
        done = await run(client, job(n=1, logprobs=0, stop=[stop]))
    (output,) = done.outputs
    assert output.text == expected_text("abc", 4, 0)
    assert len(output.logprobs or []) == len(output.token_ids or []) == 6


@pytest.mark.parametrize("stream", [True, False])
async def test_samples_go_on_after_the_engines_death(redis_url: str, tmp_path: Path, stream: bool) -> None:
    log = tmp_path / "log"
    script = {"step_s": 0.002, "die_after_tokens": 200, "log": str(log), "eos_at": {"1": 12}}
    model = save_model(tmp_path / "mortal", script)
    async with Client(redis_url) as client, consuming(redis_url, model):
        asked = [job(f"job {n}", max_tokens=60, logprobs=1, stream=stream) for n in range(3)]
        ids = await client.submit_many(asked)
        done = [await client.result(job_id, timeout=20) for job_id in ids]
        if stream:
            done = [check([pair async for pair in client.stream(job_id)]) for job_id in ids]
    for n, ended in enumerate(done):
        lengths = [60, 12, 60]
        assert [output.text for output in ended.outputs] == [
            expected_text(f"job {n}", length, sample) for sample, length in enumerate(lengths)
        ]
        assert [len(output.logprobs or []) for output in ended.outputs] == [60, 13, 60]
    resumed = [samples for _, samples in logged(log, "request")][3:]
    assert len(resumed) == 3
    assert all(set(samples) == {"0", "2"} for samples in resumed), "the sample that had ended stays out"
    assert all(count > 0 for samples in resumed for count in samples.values())


async def test_samples_go_on_in_another_consumer(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    stop = expected_text("long", 26, 0)[5:8]  # in sample 1 it would come at the 24th token
    script = {"step_s": 0.05, "log": str(log), "eos_at": {"1": 2}}
    slow = save_model(tmp_path / "slow", script)
    asked = job("long", n=3, max_tokens=18, stop=[stop], logprobs=1)
    async with Client(redis_url) as client:
        async with consuming(redis_url, slow, grace_s=0.1, coalesce_ms=1) as first:
            job_id = await client.submit(asked)
            seen = 0
            async for _, event in client.stream(job_id):
                assert isinstance(event, Tokens)
                seen += len(event.token_ids)
                if seen >= 3 * 10 - 2 - 7:  # samples 0 and 1 have ended by now
                    first.stop()
                    break
        assert (await redis.xpending_range(LANE, GROUP, "-", "+", 10))[0]["consumer"] == b"-"
        async with consuming(redis_url, slow):
            events = [pair async for pair in client.stream(job_id)]
    done = check(events)
    assert [output.text for output in done.outputs] == [
        expected_text("long", 5, 0),
        expected_text("long", 2, 1),
        expected_text("long", 18, 2),
    ]
    assert [output.finish_reason for output in done.outputs] == ["stop", "stop", "length"]
    assert [output.stop_reason for output in done.outputs] == [stop, None, None]
    (_, begun), (_, resumed) = logged(log, "request")
    assert begun == {"0": 0, "1": 0, "2": 0}
    assert set(resumed) == {"1", "2"}, "a stop string is found again; of an end token the engine says it"
    assert resumed["1"] == 3


async def test_credit_counts_samples(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "slow", {"step_s": 0.005})
    most = 0
    async with Client(redis_url) as client, consuming(redis_url, model, max_num_seqs=8, lookahead=0):
        await client.result(await client.submit(job(n=8, max_tokens=2)), timeout=10)
        ids = await client.submit_many([job(f"{n}", n=8, max_tokens=5) for n in range(10)])
        last = asyncio.create_task(client.result(ids[-1], timeout=20))
        while not last.done():
            groups = await redis.xinfo_groups(LANE)
            most = max(most, *(group["pending"] for group in groups), 0)
            await asyncio.sleep(0.003)
        assert [output.index for output in (await last).outputs] == list(range(8))
    assert 1 <= most <= 2, "a second job when the first one's samples end; never eight at once"


async def test_the_engine_is_told_when_the_queue_is_empty(redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    model = save_model(tmp_path / "model", {"log": str(log), "step_s": 0.002})
    async with Client(redis_url) as client, consuming(redis_url, model, max_num_seqs=2, lookahead=2):
        ids = await client.submit_many([job(f"{n}", n=1, max_tokens=5, stream=False) for n in range(9)])
        for job_id in ids:
            await client.result(job_id, timeout=10)
        async with asyncio.timeout(5):
            while not logged(log, "last"):  # noqa: ASYNC110 - a file has no event for this
                await asyncio.sleep(0.01)
    assert log.read_text().splitlines()[0] != '["last", true]'
