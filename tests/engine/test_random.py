"""Thousands of random requests through a tiny cache: each gives what it gives alone."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.engine import Engine
from engine.request import Output, Request, Sample
from tests.engine.on_device import engine_on_device
from tests.engine.random_requests import random_request
from tests.engine.run import engine_of
from tests.engine.tiny_models import save_wordy_model

NUM_REQUESTS = 600

Key = tuple[str, int]


class Answer(msgspec.Struct):
    """All that came of one sample."""

    token_ids: list[int] = []
    logprobs: list[Any] = []
    prompt_logprobs: list[Any] = []
    embedding: list[float] = []
    end: tuple[Any, ...] = ()

    def add(self, output: Output) -> None:
        assert not self.end, f"{output} came after the end"
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.embedding += output.embedding
        if output.finish_reason or output.error:
            self.end = (output.finish_reason, output.stop_token_id, output.error)


def drive(engine: Engine, answers: dict[Key, Answer], steps: int | None = None) -> None:
    """Steps until there is no work, or some steps."""
    rarely = 0
    while engine.has_work and steps != 0:
        for output in engine.step():
            answers[output.request_id, output.sample].add(output)
        if rarely % 8 == 0:
            engine.scheduler.check_integrity()
        rarely += 1
        steps = None if steps is None else steps - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wordy_model(tmp_path_factory.mktemp("wordy"))


@pytest.fixture(scope="module")
def requests(folder: Path) -> list[Request]:
    return [random_request(number, vocab_size=468) for number in range(NUM_REQUESTS)]


@pytest.fixture(scope="module")
def alone(folder: Path, requests: list[Request]) -> dict[Key, Answer]:
    """Every sample as a request of its own in an engine that runs nothing else and remembers nothing."""
    engine = engine_of(folder, max_num_seqs=1, prefix_cache=False, max_model_len=64)
    answers: dict[Key, Answer] = defaultdict(Answer)
    for request in requests:
        for sample in request.samples:
            single = msgspec.structs.replace(request, samples=[sample])
            engine.add([single])
            drive(engine, answers)
    return answers


def expected(alone: dict[Key, Answer], request: Request, sample: Sample) -> Answer:
    """What a sample gives beyond the tokens that it was resumed with."""
    whole = alone[request.request_id, sample.index]
    begun = len(sample.output_token_ids)
    return msgspec.structs.replace(
        whole,
        token_ids=whole.token_ids[begun:],
        logprobs=whole.logprobs[begun:],
        prompt_logprobs=whole.prompt_logprobs if sample is request.samples[0] else [],
    )


def words(request: Request, sample: Sample, settings: dict[str, Any]) -> str:
    return f"{settings}: request {request.request_id}, sample {sample.index}: {request}"


SETTINGS: dict[str, dict[str, Any]] = {
    "tiny cache": {"num_blocks": 16, "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 16},
    "tiny cache, overlapped": {
        "num_blocks": 17,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 24,
        "overlap": 1,
    },
    "no prefix cache": {"num_blocks": 40, "block_size": 8, "prefix_cache": False},
    "all at once": {"block_size": 16},
}
ON_DEVICE: dict[str, dict[str, Any]] = {
    "tiny cache, on a device": {**SETTINGS["tiny cache, overlapped"], "graphs": True},
    "tiny cache, on a device, eagerly": {**SETTINGS["tiny cache, overlapped"], "graphs": False},
    "tiny cache, on a device, not overlapped": {**SETTINGS["tiny cache"], "graphs": True},
    "all at once, on a device": {"block_size": 16, "overlap": 1, "max_num_seqs": 37, "graphs": True},
}
"""With the runner that waits for nothing, see `engine_on_device`."""


@pytest.mark.parametrize("name", [*SETTINGS, *ON_DEVICE])
def test_every_request_gives_what_it_gives_alone(
    name: str, folder: Path, requests: list[Request], alone: dict[Key, Answer]
) -> None:
    """Some begin with a part of their own output, as after a crash; some are aborted on their way."""
    rng = random.Random(name)
    settings = {**SETTINGS, **ON_DEVICE}[name]
    make = engine_on_device if name in ON_DEVICE else engine_of
    engine = make(folder, max_model_len=64, **settings)
    answers: dict[Key, Answer] = defaultdict(Answer)
    sent: list[Request] = []
    aborted: set[Key] = set()
    shuffled = rng.sample(requests, len(requests))
    while shuffled:
        count = rng.randrange(1, 30)
        chunk, shuffled = shuffled[:count], shuffled[count:]
        chunk = [begun(request, alone, rng) for request in chunk]
        engine.add(chunk, last=rng.random() < 0.3)
        sent += chunk
        drive(engine, answers, rng.randrange(12))
        for request in rng.sample(sent[-40:], min(3, len(sent))):
            aborted |= abort(engine, request, rng)
    drive(engine, answers)
    for request in sent:
        for sample in request.samples:
            key = (request.request_id, sample.index)
            want, got = expected(alone, request, sample), answers[key]
            if key in aborted and not got.end:
                assert got.token_ids == want.token_ids[: len(got.token_ids)], words(request, sample, settings)
            else:
                assert got == want, words(request, sample, settings)
    assert engine.scheduler.blocks.num_free == engine.sizes.num_blocks
    assert len(aborted) > 50
    if "tiny" in name:
        assert engine.scheduler.num_preemptions > 30
    if settings.get("prefix_cache", True):
        assert engine.scheduler.num_cached_tokens > 1000


def begun(request: Request, alone: dict[Key, Answer], rng: random.Random) -> Request:
    """The request, or one that goes on after a part of what it gave alone."""
    if request.kind != "generate" or rng.random() < 0.7:
        return request
    samples = [
        Sample(index=s.index, output_token_ids=tokens[: rng.randrange(len(tokens))] if tokens else [])
        for s in request.samples
        for tokens in [alone[request.request_id, s.index].token_ids]
    ]
    return msgspec.structs.replace(request, samples=samples)


def abort(engine: Engine, request: Request, rng: random.Random) -> Iterable[Key]:
    """Aborts a request or one of its samples; gives who that was."""
    sample = rng.choice(request.samples)
    if rng.random() < 0.5:
        engine.abort([request.request_id])
        return {(request.request_id, s.index) for s in request.samples}
    engine.abort([], [(request.request_id, sample.index)])
    return {(request.request_id, sample.index)}
