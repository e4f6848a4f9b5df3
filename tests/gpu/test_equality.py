"""The engine's greedy tokens are transformers', but for near-ties, in every way to batch them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.request import Request
from tests.engine.run import engine_of, greedy, run, tokens_of
from tests.gpu.device import HAS_GPU, OPS, SCALE, SMALLEST, Scale
from tests.gpu.near_ties import (
    FP8_MEAN,
    FP8_TIE,
    FP32_TIE,
    HALF_MARGIN,
    ROUTED_SHARE,
    ROUTED_TIE,
    Choice,
    check_choices,
    choices,
)
from tests.gpu.random_models import FAMILIES, random_prompts, reference_logits

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CROWDED = {"num_blocks": SCALE.num_blocks, "max_model_len": SCALE.window}
WAYS: dict[str, dict[str, Any]] = {
    "at once": {"overlap": 0},
    "chunked": {"overlap": 0, "max_num_batched_tokens": 48, "max_num_seqs": 16},
    "preempted": {"overlap": 0, **_CROWDED},
    "prefix hits": {"overlap": 0},
    "overlap": {"overlap": 1},
    "overlap, chunked, preempted": {
        "overlap": 1,
        "max_num_batched_tokens": 48,
        "max_num_seqs": 16,
        **_CROWDED,
    },
}
_FP8 = {"kv_cache_dtype": "fp8"}
if HAS_GPU:
    WAYS["no graphs"] = {"enforce_eager": True, "overlap": 0}
    WAYS["no graphs, overlap"] = {"enforce_eager": True, "overlap": 1}


@dataclass(frozen=True)
class Case:
    family: str
    way: str
    precision: str
    ops: str = OPS
    scale: Scale = SCALE
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def verifies(self) -> str:
        return "fp8 KV" if "kv_cache_dtype" in self.settings else self.precision

    def __str__(self) -> str:
        return f"{self.family}, {self.way}, {self.ops}, {self.verifies}"


def _cases() -> list[Case]:
    """On a GPU every family in every precision, and some in every way; on a processor a part of both."""
    if HAS_GPU:
        cases = [Case(family, "at once", precision) for family in FAMILIES for precision in DTYPES]
        cases += [
            Case(family, way, precision)
            for family in ("llama", "qwen3", "gemma2", "qwen3-moe")
            for way in WAYS
            if way != "at once"
            for precision in ("fp32", "bf16")
        ]
        cases += [Case(family, "overlap", "bf16", settings=_FP8) for family in ("llama", "qwen3", "gemma2")]
        return cases
    return [
        *(Case(family, "at once", "fp32") for family in FAMILIES),
        *(Case("qwen3", way, "fp32") for way in WAYS if way != "at once"),
        *(Case(family, "at once", "bf16") for family in ("llama", "qwen3-moe")),
        *(  # by Triton's interpreter
            Case(family, way, "fp32", "triton", SMALLEST, settings)
            for family, way, settings in (
                ("qwen3", "overlap", {}),
                ("llama", "at once", _FP8),
                ("gemma2", "at once", {}),
                ("qwen3-moe", "overlap", {}),
            )
        ),
    ]


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_greedy_tokens_are_the_references(
    case: Case,
    model_folder: Callable[[str, Scale], Path],
    reference: Callable[[str, Scale, torch.dtype], Any],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("verifies", case.verifies)
    prompts = random_prompts(case.scale)
    with np.errstate(all="ignore"):  # infinity is a value in kernels, also where NumPy interprets them
        outputs = _generate(case, model_folder(case.family, case.scale), prompts)
    _check(case, prompts, outputs, reference)


def _generate(case: Case, folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    scale = case.scale
    settings: dict[str, Any] = {
        "max_model_len": scale.window,
        "max_num_seqs": scale.num_prompts,
        "num_blocks": scale.num_prompts * scale.window // 16,
        **WAYS[case.way],
        **case.settings,
    }
    device = (
        "cuda" if HAS_GPU else "auto"
    )  # by name: an engine that cannot use the GPU must not stand for one
    engine = engine_of(folder, ops=case.ops, device=device, precision=case.precision, **settings)
    assert engine.runner.model.ops.name == case.ops
    assert engine.config.device == ("cuda" if HAS_GPU else "cpu")
    requests = [
        Request(request_id=str(i), prompt_token_ids=prompt, params=greedy(scale.max_tokens))
        for i, prompt in enumerate(prompts)
    ]
    if case.way == "prefix hits":
        run(engine, requests)
    found = run(engine, requests)
    if "preempted" in case.way:
        assert engine.scheduler.num_preemptions > 0, "nothing was preempted"
    if case.way == "prefix hits":
        assert engine.scheduler.num_cached_tokens > 0, "the prefix cache was not used"
    return [tokens_of(found[str(i)]) for i in range(len(prompts))]


def _check(
    case: Case,
    prompts: list[list[int]],
    outputs: list[list[int]],
    reference: Callable[[str, Scale, torch.dtype], Any],
) -> None:
    """Each output against the logits of float32; epsilon from what transformers itself is off by."""
    exact = reference(case.family, case.scale, torch.float32)
    found: list[Choice] = []
    their_error = 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output) == case.scale.max_tokens
        logits = reference_logits(exact, prompt, output)
        found.append(choices(logits, output))
        if case.precision != "fp32":
            half = reference(case.family, case.scale, DTYPES[case.precision])
            their_error = max(
                their_error, float((reference_logits(half, prompt, output) - logits).abs().max())
            )
    if case.precision != "fp32" and "moe" in case.family:
        _check_routed(case, found)
        return
    for i, choice in enumerate(found):
        where = f"{case}, request {i} of {len(prompts[i])} prompt tokens"
        if case.verifies == "fp8 KV":
            check_choices(choice, max(FP8_TIE * choice.spread, HALF_MARGIN * their_error), where)
        elif case.precision == "fp32":
            check_choices(choice, FP32_TIE * choice.deviation, where)
        else:
            check_choices(choice, HALF_MARGIN * their_error, where)
    if case.verifies == "fp8 KV":
        mean = float(torch.cat([choice.gaps for choice in found]).mean())
        spread = sum(choice.spread for choice in found) / len(found)
        assert mean < FP8_MEAN * spread, (
            f"{case}: tokens are {mean / spread:.2%} of the spread below the best"
        )


def _check_routed(case: Case, found: list[Choice]) -> None:
    below = torch.cat([choice.gaps > ROUTED_TIE * choice.spread for choice in found])
    share = float(below.float().mean())
    assert share <= ROUTED_SHARE, f"{case}: {share:.1%} of the tokens are far below the best"
