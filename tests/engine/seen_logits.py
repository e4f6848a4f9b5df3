"""What an engine samples from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.engine import Engine
from engine.request import Request
from tests.engine.run import run, tokens_of

Logits = dict[tuple[int, int], Tensor]
"""By request, which the prompt's first token tells, and output index."""


def seen_logits(engine: Engine, which: list[Request]) -> tuple[Logits, list[list[int]]]:
    """What was sampled from, and the tokens."""
    seen: Logits = {}
    runner: Any = engine.runner
    sample, state = runner.sample, runner.rows

    def watched(rows: list[int], masks: Any = None) -> Any:
        for row, values in zip(rows, runner._logits if rows else [], strict=True):
            index = int(state.num_tokens[row] - state.num_prompt_tokens[row])
            seen.setdefault((int(state.tokens[row, 0]), index), values.clone())
        return sample(rows, masks)

    runner.sample = watched
    outputs = run(engine, which, check=False)
    runner.sample = sample
    return seen, [tokens_of(outputs[request.request_id]) for request in which]
