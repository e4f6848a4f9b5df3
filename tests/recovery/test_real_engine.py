"""The whole path with the real engine and the trained model: killed in mid-run, and many jobs at once."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import psutil
import pytest

from penstock.client import Client
from penstock.errors import JobFailed
from penstock.keys import Keys
from penstock.messages import Completion, Job, PoolingParams, SamplingParams, StructuredOutputs
from producer.shipped import default_model
from tests.conftest import Server
from tests.recovery.processes import ConsumerProcess, check_stream, events_of, terminal_events

LANE = Keys().jobs("standard")
START_TIMEOUT_S = 60


@pytest.fixture
def start() -> Iterator[Callable[..., ConsumerProcess]]:
    """Start `python -m consumer` with the trained model; none outlives the test."""
    started: list[ConsumerProcess] = []

    def start(url: str, *flags: str) -> ConsumerProcess:
        argv = ("-m", "consumer", "--redis", url, "--model", str(default_model()), *flags)
        started.append(ConsumerProcess(*argv))
        return started[-1]

    yield start
    for process in started:
        process.clean_up()


VARIED: list[dict[str, Any]] = [
    {},
    {"n": 3, "logprobs": 2},
    {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "logprobs": 0},
    {"n": 2, "stop": ["e", "14"], "min_tokens": 40, "include_stop_str_in_output": True},
]


def sampled_jobs(count: int, num_tokens: int) -> list[Job]:
    """Streamed, sampled, seeded, not ended by the model: any lost or repeated token changes the answer."""
    return [
        Job(
            prompt=f"Write {n} words about water:",
            stream=True,
            return_token_ids=True,
            sampling_params=SamplingParams(
                max_tokens=num_tokens,
                temperature=1.0,
                seed=n,
                ignore_eos=True,
                top_p=0.95,
                **VARIED[n % len(VARIED)],
            ),
        )
        for n in range(count)
    ]


async def answers(client: Client, jobs: list[Job]) -> tuple[list[str], list[list[Completion]]]:
    ids = await client.submit_many(jobs)
    done = await asyncio.gather(*(client.result(job_id, START_TIMEOUT_S) for job_id in ids))
    return ids, [d.outputs for d in done]


@pytest.mark.timeout(180)
async def test_a_killed_consumer_changes_no_answer(
    server: Server, redis_url: str, start: Callable[..., ConsumerProcess]
) -> None:
    jobs = sampled_jobs(24, 120)
    async with Client(redis_url) as client:
        undisturbed = start(redis_url, "--max-num-seqs", "16")
        _, expected = await answers(client, jobs)
        assert undisturbed.drain() == 0

        first = start(redis_url, "--name", "w", "--max-num-seqs", "16", "--coalesce-ms", "20")
        ids = await client.submit_many(jobs)
        async with asyncio.timeout(START_TIMEOUT_S):
            follower = client.stream(ids[0])
            for _ in range(3):
                await anext(follower)
        first.kill()
        start(redis_url, "--name", "w", "--max-num-seqs", "16")
        outputs = [(await client.result(job_id, START_TIMEOUT_S)).outputs for job_id in ids]
    for n, (found, whole) in enumerate(zip(outputs, expected, strict=True)):
        assert found == whole, f"job {n}, {VARIED[n % len(VARIED)]}"
    with server.client() as redis:
        for job_id in ids:
            check_stream(events_of(redis, job_id))
        assert redis.xlen(LANE) == 0


@pytest.mark.timeout(400)
async def test_ten_thousand_jobs_each_end_once_in_flat_memory(
    server: Server, redis_url: str, start: Callable[..., ConsumerProcess]
) -> None:
    numbers = random.Random(0)
    params = SamplingParams(max_tokens=4)
    process = start(redis_url, "--max-num-seqs", "256", "--max-num-batched-tokens", "2048")
    memory = psutil.Process(process.process.pid)

    def batch(count: int) -> list[Job]:
        operands = [(numbers.randrange(90), numbers.randrange(9)) for _ in range(count)]
        return [Job(prompt=f"What is {a} + {b}?", sampling_params=params) for a, b in operands]

    async with Client(redis_url) as client:
        ids = await client.submit_many(batch(2_000))
        await client.result(ids[-1], START_TIMEOUT_S)
        early = memory.memory_info().rss
        ids += await client.submit_many(batch(8_000))
        for job_id in reversed(ids):
            await client.result(job_id, 200)
        late = memory.memory_info().rss
    with server.client() as redis:
        assert redis.xlen(LANE) == 0
        ends = [terminal_events(events_of(redis, job_id)) for job_id in ids]
    assert ends == [1] * 10_000
    assert late - early < 16 * 1024**2, f"the consumer grew from {early} to {late} bytes"


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": ["yes", "no"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.timeout(180)
async def test_scores_vectors_and_forms(redis_url: str, start: Callable[..., ConsumerProcess]) -> None:
    text = "What is 12 + 30?"

    def asked(kind: Any = "generate", pooling: Any = None, **params: Any) -> Job:
        return Job(
            prompt=text,
            kind=kind,
            pooling_params=pooling or PoolingParams(),
            sampling_params=SamplingParams(**params),
        )

    start(redis_url)
    async with Client(redis_url) as client:
        good = await client.submit_many(
            [
                asked("score", prompt_logprobs=3),
                asked(max_tokens=1, prompt_logprobs=3),
                asked("embed"),
                asked("embed", PoolingParams(pooling="mean", normalize=False)),
                asked(structured_outputs=StructuredOutputs(json=SCHEMA), max_tokens=60, temperature=1.0, n=4),
                asked(structured_outputs=StructuredOutputs(choice=["yes", "no"])),
                asked(structured_outputs=StructuredOutputs(regex="[0-9]{3}-[a-z]{2}")),
            ]
        )
        bad = await client.submit(asked(structured_outputs=StructuredOutputs(regex="(((")))
        done = [await client.result(job_id, START_TIMEOUT_S) for job_id in good]
        with pytest.raises(JobFailed) as failed:
            await client.result(bad, START_TIMEOUT_S)
    score, generated, last, mean, forms, choice, regex = done
    assert score.score is not None
    assert score.score.tokens == generated.prompt_logprobs
    assert score.score.logprob == sum(token.logprob for token in score.score.tokens) < 0
    assert "".join(token.token for token in score.score.tokens) in text
    assert all(len(token.top_logprobs) == 3 for token in score.score.tokens)
    assert last.embedding is not None
    assert mean.embedding is not None
    assert len(last.embedding) == len(mean.embedding)
    assert sum(x * x for x in last.embedding) == pytest.approx(1.0, abs=1e-5)
    assert [output.index for output in forms.outputs] == [0, 1, 2, 3]
    for output in forms.outputs:
        if output.finish_reason == "stop":
            jsonschema.validate(json.loads(output.text), SCHEMA)
    assert choice.text in ("yes", "no")
    assert re.fullmatch("[0-9]{3}-[a-z]{2}", regex.text)
    assert failed.value.error.type == "invalid_job"
    assert failed.value.error.message
