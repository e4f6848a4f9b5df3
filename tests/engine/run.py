"""Running an engine to the end in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.engine import Engine
from engine.request import Output, Request, RequestParams, Sample


def engine_of(folder: Path, **settings: Any) -> Engine:
    """An engine of one thread."""
    return Engine(EngineConfig(model=str(folder), num_threads=1, **settings))


def greedy(max_tokens: int) -> RequestParams:
    """Parameters without chance."""
    return RequestParams(max_tokens=max_tokens, seed=0, temperature=0.0)


def run(engine: Engine, requests: list[Request], *, check: bool = True) -> dict[str, list[Output]]:
    """All outputs of each request, in order; integrity is checked after every step."""
    outputs: dict[str, list[Output]] = {request.request_id: [] for request in requests}
    engine.add(requests)
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
        if check:
            engine.scheduler.check_integrity()
    return outputs


def tokens_of(outputs: list[Output], sample: int = 0) -> list[int]:
    """The new tokens of a request's sample, which must have ended without an error."""
    outputs = [output for output in outputs if output.sample == sample]
    assert outputs, "a sample without any output"
    assert outputs[-1].error is None, outputs[-1].error
    assert outputs[-1].finish_reason is not None
    return [token for output in outputs for token in output.token_ids]


def resumed(token_ids: list[int], index: int = 0) -> list[Sample]:
    """The samples of a request with one, of which an earlier run has made these tokens."""
    return [Sample(index=index, output_token_ids=token_ids)]
