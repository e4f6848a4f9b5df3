"""A job's sampled tokens are the same alone, in a batch of 64, chunked, after preemption and when resumed.

To the bit, and in every precision: test_precisions."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.request import Request, RequestParams
from tests.engine.run import engine_of, resumed, run, tokens_of
from tests.engine.tiny_models import random_prompts

MAX_TOKENS = 24
PROMPTS = random_prompts(64, longest=60, seed=1)


def params(i: int) -> RequestParams:
    """A different way to sample for every request; every eighth is greedy."""
    rng = random.Random(i)
    return RequestParams(
        max_tokens=MAX_TOKENS,
        seed=rng.getrandbits(64),
        temperature=0.0 if i % 8 == 0 else rng.uniform(0.3, 3.0),
        top_p=rng.choice([1.0, 0.7, 0.95]),
        top_k=rng.choice([0, 5, 50]),
        min_p=rng.choice([0.0, 0.05]),
    )


def requests(begun: list[list[int]] | None = None) -> list[Request]:
    return [
        Request(
            request_id=str(i),
            prompt_token_ids=prompt,
            params=params(i),
            samples=resumed(begun[i] if begun else [], index=i % 3),
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def tokens(engine: Engine, which: list[Request]) -> list[list[int]]:
    outputs = run(engine, which)
    return [tokens_of(outputs[r.request_id], r.samples[0].index) for r in which]


@pytest.fixture(scope="module")
def alone(tiny_model: Callable[[str], Path]) -> list[list[int]]:
    """Each request in an engine that runs nothing else."""
    engine = engine_of(tiny_model("llama"))
    return [tokens(engine, [request])[0] for request in requests()]


WAYS: dict[str, dict[str, Any]] = {
    "batch of 64": {},
    "chunked": {"max_num_batched_tokens": 19, "max_num_seqs": 16},
    "preempted": {"num_blocks": 12, "block_size": 8, "max_model_len": 96},
    "small blocks": {"block_size": 1},
    "without prefix cache": {"prefix_cache": False},
    "overlapped": {"overlap": 1},
    "overlapped, chunked and preempted": {
        "overlap": 1,
        "max_num_batched_tokens": 19,
        "max_num_seqs": 16,
        "num_blocks": 14,
        "block_size": 8,
        "max_model_len": 96,
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_same_tokens_in_every_batch(
    way: str, alone: list[list[int]], tiny_model: Callable[[str], Path]
) -> None:
    engine = engine_of(tiny_model("llama"), **WAYS[way])
    assert tokens(engine, requests()) == alone
    if "preempted" in way:
        assert engine.scheduler.num_preemptions > 5


@pytest.mark.parametrize("way", ["batch of 64", "preempted"])
def test_resumed_requests_go_on_with_the_same_tokens(
    way: str, alone: list[list[int]], tiny_model: Callable[[str], Path]
) -> None:
    rng = random.Random(2)
    kept = [answer[: rng.randrange(MAX_TOKENS)] for answer in alone]
    rest = tokens(engine_of(tiny_model("llama"), **WAYS[way]), requests(kept))
    assert [begun + more for begun, more in zip(kept, rest, strict=True)] == alone


def test_seeds_and_samples_draw_differently(tiny_model: Callable[[str], Path]) -> None:
    hot = RequestParams(max_tokens=20, seed=1, temperature=2.0)
    variants = [
        hot,
        hot,
        RequestParams(max_tokens=20, seed=2, temperature=2.0),
    ]
    engine = engine_of(tiny_model("llama"))
    got = tokens(
        engine,
        [
            *(
                Request(request_id=str(i), prompt_token_ids=[1, 2], params=variant)
                for i, variant in enumerate(variants)
            ),
            Request(request_id="3", prompt_token_ids=[1, 2], params=hot, samples=resumed([], index=1)),
        ],
    )
    assert got[0] == got[1]
    assert len({tuple(answer) for answer in got}) == 3
