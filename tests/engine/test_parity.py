"""Greedy tokens equal transformers' `generate`, for every family and every way to batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.request import Request, Sample
from tests.engine.run import engine_of, greedy, run, tokens_of
from tests.engine.tiny_models import FAMILIES, generate, random_prompts

MAX_TOKENS = 10
PROMPTS = [*random_prompts(6, longest=70), *random_prompts(6, longest=16, seed=1)]
"""Some end within the sliding windows of the tiny models, most outgrow them, and all cross blocks."""

WAYS: dict[str, dict[str, Any]] = {
    "at once": {},
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 16},
    "preempted": {"num_blocks": 11, "block_size": 8, "max_model_len": 88},
    "one by one": {"max_num_seqs": 1},
    "reference ops": {"ops": "reference"},
    "prefix hits": {"block_size": 4},
    "three samples": {"block_size": 8, "prefix_cache": False},
    "overlapped, chunked and preempted": {
        "overlap": 1,
        "max_num_batched_tokens": 32,
        "max_num_seqs": 16,
        "num_blocks": 12,
        "block_size": 8,
        "max_model_len": 88,
    },
}


@pytest.fixture(scope="module")
def expected(tiny_model: Callable[[str], Path]) -> Callable[[str], list[list[int]]]:
    """What transformers says, asked once per family."""
    answers: dict[str, list[list[int]]] = {}

    def ask(family: str) -> list[list[int]]:
        if family not in answers:
            answers[family] = generate(tiny_model(family), PROMPTS, MAX_TOKENS)
        return answers[family]

    return ask


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers(
    family: str,
    way: str,
    tiny_model: Callable[[str], Path],
    expected: Callable[[str], list[list[int]]],
) -> None:
    engine = engine_of(tiny_model(family), **WAYS[way])
    samples = [Sample(index=i) for i in range(3 if way == "three samples" else 1)]
    requests = [
        Request(request_id=str(i), prompt_token_ids=prompt, params=greedy(MAX_TOKENS), samples=samples)
        for i, prompt in enumerate(PROMPTS)
    ]
    if way == "prefix hits":
        run(engine, requests)
    outputs = run(engine, requests)
    for i, want in enumerate(expected(family)):
        for sample in samples:
            got = tokens_of(outputs[str(i)], sample.index)
            where = f"{family}, {way}, request {i} of {len(PROMPTS[i])} prompt tokens, sample {sample.index}"
            compare(got, want, where)
    assert engine.scheduler.blocks.num_free == engine.sizes.num_blocks
    if "preempted" in way:
        assert engine.scheduler.num_preemptions > 0
    if way == "prefix hits":
        assert engine.scheduler.num_cached_tokens > sum(map(len, PROMPTS)) // 2


def compare(got: list[int], want: list[int], where: str) -> None:
    """Fails with the first position at which they differ."""
    assert len(got) == len(want), f"{where}: {len(got)} tokens, transformers says {len(want)}"
    for position, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert mine == theirs, f"{where}, output {position}: token {mine}, transformers says {theirs}"
