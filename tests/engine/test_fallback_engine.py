"""Fallback models in the engine: the same tokens as transformers however the requests are batched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UnsupportedModel
from engine.models.fallback import FallbackModel
from engine.request import Request
from tests.engine.fallback_models import save_fallback_model
from tests.engine.run import engine_of, greedy, run, tokens_of
from tests.engine.tiny_models import generate, random_prompts

MAX_TOKENS = 10
PROMPTS = [*random_prompts(6, longest=70), *random_prompts(6, longest=16, seed=1)]

ARCHITECTURES = (
    "Cohere2ForCausalLM",
    "CohereForCausalLM",
    "Exaone4ForCausalLM",
    "Glm4ForCausalLM",
    "GraniteMoeForCausalLM",
    "HeliumForCausalLM",
    "OPTForCausalLM",
    "OlmoForCausalLM",
    "OlmoeForCausalLM",
    "PhiForCausalLM",
    "PhimoeForCausalLM",
    "Qwen2MoeForCausalLM",
)
WAYS: dict[str, dict[str, Any]] = {
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 16},
    "preempted": {"num_blocks": 11, "block_size": 8, "max_model_len": 88},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[list[int]]]]:
    """A model's folder, and what transformers generates; made once."""
    made: dict[str, tuple[Path, list[list[int]]]] = {}

    def make(architecture: str) -> tuple[Path, list[list[int]]]:
        if architecture not in made:
            folder = save_fallback_model(architecture, tmp_path_factory.mktemp(architecture))
            made[architecture] = folder, generate(folder, PROMPTS, MAX_TOKENS)
        return made[architecture]

    return make


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_equal_transformers(
    architecture: str, way: str, saved: Callable[[str], tuple[Path, list[list[int]]]]
) -> None:
    folder, expected = saved(architecture)
    engine = engine_of(folder, **WAYS[way])
    assert isinstance(engine.runner.model, FallbackModel)
    params = greedy(MAX_TOKENS)
    requests = [Request(request_id=str(i), prompt_token_ids=p, params=params) for i, p in enumerate(PROMPTS)]
    outputs = run(engine, requests)
    for i, want in enumerate(expected):
        got = tokens_of(outputs[str(i)])
        assert got == want, f"{architecture}, {way}, request {i} of {len(PROMPTS[i])} prompt tokens"
    if way == "preempted":
        assert engine.scheduler.num_preemptions > 0


def test_shared_prompts_are_computed_once(saved: Callable[[str], tuple[Path, list[list[int]]]]) -> None:
    folder, expected = saved("OlmoForCausalLM")
    engine = engine_of(folder, block_size=8)
    longest = max(range(len(PROMPTS)), key=lambda i: len(PROMPTS[i]))
    for attempt in range(2):
        request = Request(request_id="r", prompt_token_ids=PROMPTS[longest], params=greedy(MAX_TOKENS))
        outputs = run(engine, [request])["r"]
        assert tokens_of(outputs) == expected[longest]
        assert (outputs[0].num_cached_tokens > 0) == (attempt == 1)


def test_a_refused_model_is_named(tmp_path: Path) -> None:
    folder = save_fallback_model("GptOssForCausalLM", tmp_path)
    with pytest.raises(UnsupportedModel, match="architecture GptOssForCausalLM is not supported"):
        engine_of(folder)
