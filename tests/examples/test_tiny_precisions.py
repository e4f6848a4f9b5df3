"""The shipped model answers as well in every precision as in float32."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine.request import Request
from tests.engine.run import engine_of, greedy, run, tokens_of

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "models" / "tiny"
NUM_QUESTIONS = 30
"""Held-out ones of each task."""
POINTS = 0.5
"""How many of a hundred answers may get worse."""


@pytest.fixture(scope="module")
def questions() -> Iterator[list[Any]]:
    """Drawn by examples/tiny, which is a folder of scripts and no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES / "tiny"))
        import tasks

        yield [
            q for task in tasks.TASKS.values() for q in tasks.distinct(task, "test", NUM_QUESTIONS, seed=7)
        ]
    for name in ("tasks", "wording"):
        sys.modules.pop(name, None)


def num_right(questions: list[Any], precision: str) -> int:
    tokenizer: Any = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    template = "<|bos|><|user|>{}<|end|><|assistant|>"
    requests = [
        Request(
            request_id=str(i),
            prompt_token_ids=tokenizer.encode(template.format(q.text), add_special_tokens=False).ids,
            params=greedy(32),
        )
        for i, q in enumerate(questions)
    ]
    outputs = run(engine_of(MODEL, precision=precision), requests, check=False)
    answers = [tokenizer.decode(tokens_of(outputs[request.request_id])) for request in requests]
    return sum(answer == q.answer for answer, q in zip(answers, questions, strict=True))


@pytest.fixture(scope="module")
def right_in_float32(questions: list[Any]) -> int:
    return num_right(questions, "fp32")


def test_float32_is_as_right_as_the_report_says(questions: list[Any], right_in_float32: int) -> None:
    share = json.loads((MODEL / "REPORT.json").read_text())["chat"]["share"]
    assert len(questions) > 380
    assert right_in_float32 / len(questions) > share - 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_answers_are_as_right_as_in_float32(
    precision: str, questions: list[Any], right_in_float32: int
) -> None:
    lost = right_in_float32 - num_right(questions, precision)
    assert 100 * lost / len(questions) <= POINTS, f"{lost} of {len(questions)} answers are lost"
