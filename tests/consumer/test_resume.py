"""A job that is cut off goes on, after what it has published, as if nothing had happened.

The trained model, its real engine and the consumer's path: whatever mixture of parameters a job has, its
end is the same to the last log-probability, and its stream has no gap and no token twice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from penstock.messages import Done, Failed, Tokens, decode_event
from tests.consumer.in_process import Event, InProcess, RunOfJob, lease_of
from tests.consumer.random_jobs import random_job

NUM_JOBS = 90
NUM_CUTS = 3
JOBS = [random_job(number) for number in range(NUM_JOBS)]

KINDS_OF_END = (
    "stop None",
    "stop int",
    "stop str",
    "length",
    "repetition",
    "structured and whole",
    "n > 1",
    "logprobs",
)

# Other engines than the one that ran them whole: where a job goes on may be busy in other ways.
SETTINGS: dict[str, dict[str, Any]] = {
    "same engine": {},
    "small and overlapped": {
        "num_blocks": 50,
        "block_size": 2,
        "max_model_len": 96,
        "max_num_seqs": 24,
        "max_num_batched_tokens": 40,
        "overlap": 1,
    },
}


@pytest.fixture(scope="module")
def process() -> InProcess:
    return InProcess()


@pytest.fixture(scope="module")
def whole(process: InProcess) -> list[RunOfJob]:
    """Every job, run without any disturbance; published now and then, as coalescing does it."""
    runs = [process.admit(lease_of(job, number)) for number, job in enumerate(JOBS)]
    process.drive(runs, random.Random(1))
    return runs


def ending_of(run: RunOfJob) -> Done | Failed:
    """The terminal event, but for the prefix cache's hits."""
    terminal = run.terminal
    if isinstance(terminal, Failed):
        return terminal
    usage = msgspec.structs.replace(terminal.usage, cached_tokens=0)
    return msgspec.structs.replace(terminal, usage=usage)


def check_stream(events: Sequence[Event], done: Done) -> None:
    """The `tokens` events follow each other and give what the terminal event gives."""
    count = 0
    of_samples: dict[int, Tokens] = {}
    for event_id, data in events:
        event = decode_event(data)
        assert isinstance(event, Tokens)
        count += len(event.token_ids)
        assert event_id == f"{count}-0"
        before = of_samples.get(event.sample)
        if before is None:
            assert event.text_offset == 0
            of_samples[event.sample] = event
            continue
        assert event.text_offset == len(before.text)
        of_samples[event.sample] = msgspec.structs.replace(
            before,
            text=before.text + event.text,
            token_ids=before.token_ids + event.token_ids,
            logprobs=None if before.logprobs is None else before.logprobs + (event.logprobs or []),
        )
    assert count == done.usage.completion_tokens
    for output in done.outputs:
        streamed = of_samples[output.index]
        assert streamed.text == output.text
        assert streamed.token_ids == output.token_ids
        assert streamed.logprobs == output.logprobs


def check_same(run: RunOfJob, expected: RunOfJob, what: str) -> None:
    """The resumed run ended as the whole one did, and its stream has all of it, once."""
    words = f"{what}: {run.running.job}"
    assert ending_of(run) == ending_of(expected), words
    assert run.ending is not None
    assert expected.ending is not None
    terminal = run.terminal
    if isinstance(terminal, Done):
        assert run.ending.terminal_id == expected.ending.terminal_id, words
        check_stream(run.events, terminal)


def test_the_jobs_end_in_every_way(whole: list[RunOfJob]) -> None:
    """What the other tests rest on: that the jobs are as different as they should be."""
    ends: Counter[str] = Counter()
    for run in whole:
        terminal = run.terminal
        if isinstance(terminal, Failed):
            ends[terminal.error.type] += 1
            continue
        check_stream(run.events, terminal)
        params = run.running.job.sampling_params
        for output in terminal.outputs:
            reason = f" {type(output.stop_reason).__name__}" if output.finish_reason == "stop" else ""
            structured = params.structured_outputs is not None
            ends[output.finish_reason + reason.removesuffix("Type")] += 1
            ends["structured and whole"] += structured and output.finish_reason == "stop"
        ends["n > 1"] += params.n > 1
        ends["logprobs"] += params.logprobs is not None
    assert all(ends[kind] >= 3 for kind in KINDS_OF_END), ends


@pytest.mark.parametrize("name", SETTINGS)
def test_goes_on_after_any_of_its_events(name: str, process: InProcess, whole: list[RunOfJob]) -> None:
    """As after a crash of the consumer: admitted again with a part of the stream, somewhere else perhaps."""
    rng = random.Random(name)
    other = InProcess(**SETTINGS[name]) if SETTINGS[name] else process
    runs: list[tuple[RunOfJob, RunOfJob, str]] = []
    for number, expected in enumerate(whole):
        most = max(1, len(expected.events))  # the last one is written together with the end
        for deliveries, cut in enumerate(rng.sample(range(most), min(NUM_CUTS, most)), 2):
            lease = lease_of(JOBS[number], number, deliveries)
            runs.append((other.admit(lease, expected.events[:cut]), expected, f"{name}, after {cut} events"))
    rng.shuffle(runs)
    other.drive([run for run, _, _ in runs], rng)
    for run, expected, what in runs:
        check_same(run, expected, what)
    if "small" in name:
        assert other.engine.scheduler.num_preemptions > 3


def test_only_the_end_is_missing(process: InProcess, whole: list[RunOfJob]) -> None:
    """All tokens are out, and the server lost the end: what is wanted of the prompt is computed again."""
    runs = [process.admit(lease_of(JOBS[n], n, 2), run.events) for n, run in enumerate(whole)]
    process.drive(runs)
    wanted = 0
    for run, expected in zip(runs, whole, strict=True):
        check_same(run, expected, "only the end was missing")
        terminal = expected.terminal
        wanted += isinstance(terminal, Done) and bool(terminal.prompt_logprobs)
    assert wanted > 3


def test_goes_on_after_crash_upon_crash(process: InProcess, whole: list[RunOfJob]) -> None:
    """Whoever takes a job gets some steps done and what it has published stays: until nothing is left."""
    rng = random.Random(3)
    events: dict[int, list[Event]] = {number: [] for number in range(NUM_JOBS)}
    deliveries = 1
    while events:
        deliveries += 1
        runs = {n: process.admit(lease_of(JOBS[n], n, deliveries), given) for n, given in events.items()}
        process.drive(list(runs.values()), rng, steps=rng.randrange(1, 12))
        process.engine.abort([run.request_id for run in runs.values()])
        for number, run in runs.items():
            if run.ending is None:
                events[number] = run.events
            else:
                del events[number]
                check_same(run, whole[number], f"delivery {deliveries}")
    assert deliveries > 4


def test_goes_on_after_deaths_of_the_engine(whole: list[RunOfJob]) -> None:
    """The consumer lives, and has more tokens than it has published; the next engine has none."""
    rng = random.Random(4)
    process = InProcess()
    runs = [process.admit(lease_of(job, number)) for number, job in enumerate(JOBS)]
    for settings in ({}, *SETTINGS.values()):
        process.drive(runs, rng, steps=8)
        process = InProcess(**settings)
    process.drive(runs, rng)
    for run, expected in zip(runs, whole, strict=True):
        check_same(run, expected, "after deaths")
