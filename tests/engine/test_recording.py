"""Replayed decode steps give what the same steps give one operation at a time, to the bit."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.engine import Engine
from engine.recording import DecodeRecording
from engine.request import Request, RequestParams
from engine.runner import Runner
from kernels.cpu import native
from tests.engine.fallback_models import save_fallback_model
from tests.engine.run import engine_of, greedy, run, tokens_of
from tests.engine.seen_logits import seen_logits
from tests.engine.tiny_models import FAMILIES, random_prompts

pytestmark = pytest.mark.skipif(native.load() is None, reason="only C++ kernels are recorded")

SHIPPED = Path(__file__).parents[2] / "examples/models/tiny"
PROMPTS = [[i, *prompt] for i, prompt in enumerate(random_prompts(20, longest=40, seed=3))]
WITH_EXPERTS = {"mixtral", "qwen3-moe", "qwen3-moe-renormalized"}
CASES = [
    ("qwen3", "fp32"),
    ("qwen3", "bf16"),
    ("qwen3", "int8"),
    ("llama", "int8"),
    ("llama-biases-no-gqa", "bf16"),
    ("qwen2-windows", "int8"),
    ("mistral", "fp32"),
    ("gemma2", "bf16"),
    ("gemma3", "int8"),
    ("granite", "fp32"),
    ("olmo2", "fp32"),
    ("gpt2", "fp16"),
    ("bloom", "fp32"),
    ("falcon-7b", "int8"),
    ("mixtral", "int8"),
]


def requests() -> list[Request]:
    """They end one by one, so that every number of rows is met; every third is greedy."""
    return [
        Request(
            request_id=str(i),
            prompt_token_ids=prompt,
            params=RequestParams(
                max_tokens=3 + 2 * i, seed=i, temperature=0.0 if i % 3 == 0 else 1.5, top_p=0.95
            ),
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def recording_of(engine: Engine) -> DecodeRecording | None:
    assert isinstance(engine.runner, Runner)
    return engine.runner.recording


def is_recorded(engine: Engine) -> bool:
    recording = recording_of(engine)
    assert recording is not None, "a runner that records nothing"
    return recording.is_made


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_replayed_steps_give_the_same_bits(
    family: str, precision: str, tiny_model: Callable[[str], Path]
) -> None:
    """Chunked prompts between decodes, preemptions, windows that end, batches that shrink, and, the second
    time, prefixes out of the cache."""
    settings: dict[str, Any] = {
        "precision": precision,
        "max_num_seqs": 9,
        "max_num_batched_tokens": 31,
        "num_blocks": 40,
        "block_size": 8,
        "max_model_len": 96,
    }
    eager = engine_of(tiny_model(family), enforce_eager=True, **settings)
    replaying = engine_of(tiny_model(family), **settings)
    assert recording_of(eager) is None
    for _ in range(2):
        expected, expected_tokens = seen_logits(eager, requests())
        got, tokens = seen_logits(replaying, requests())
        assert tokens == expected_tokens
        assert got.keys() == expected.keys()
        for key, values in got.items():
            assert torch.equal(values, expected[key]), f"(request, output index) {key}"
    assert replaying.scheduler.num_preemptions > 0
    assert replaying.scheduler.num_cached_tokens > 100
    assert is_recorded(replaying) == (family not in WITH_EXPERTS)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_families_without_experts_are_recorded(
    family: str, tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="engine.recording")
    assert is_recorded(engine_of(tiny_model(family))) == (family not in WITH_EXPERTS)  # by the warm-up
    assert ("are not recorded" in caplog.text) == (family in WITH_EXPERTS)


def test_the_shipped_model_is_recorded() -> None:
    assert is_recorded(engine_of(SHIPPED, max_num_seqs=2, num_blocks=64))


def test_what_transformers_computes_is_not_recorded(tmp_path: Path) -> None:
    folder = save_fallback_model("OPTForCausalLM", tmp_path)
    request = Request(request_id="a", prompt_token_ids=[5, 6, 7], params=greedy(12))
    tokens: list[list[int]] = []
    for enforce_eager in (True, False):
        engine = engine_of(folder, enforce_eager=enforce_eager)
        tokens.append(tokens_of(run(engine, [request])["a"]))
        assert enforce_eager or not is_recorded(engine)
    assert tokens[0] == tokens[1]


def test_threads_give_the_same_bits(tiny_model: Callable[[str], Path]) -> None:
    """One region for a whole step: whoever comes late to a small operation must still wait for its end."""
    rng = random.Random(0)
    prompts = [[rng.randrange(199) for _ in range(8)] for _ in range(12)]
    asked = [
        Request(request_id=str(i), prompt_token_ids=prompt, params=greedy(100))
        for i, prompt in enumerate(prompts)
    ]
    answers: list[list[list[int]]] = []
    for num_threads in (1, 3):
        engine = engine_of(tiny_model("qwen3"), precision="int8", max_model_len=128)
        torch.set_num_threads(num_threads)
        outputs = run(engine, asked, check=False)
        torch.set_num_threads(1)
        answers.append([tokens_of(outputs[request.request_id]) for request in asked])
    assert answers[0] == answers[1]
