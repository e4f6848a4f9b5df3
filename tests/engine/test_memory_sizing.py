"""The KV cache of a GPU: what the fraction leaves beside what is in use and the greatest step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from engine.config import EngineConfig
from engine.device import resolve
from engine.errors import ConfigError
from engine.memory import kv_cache_bytes, runner_sizes
from engine.models.model import Model
from engine.prompts import num_prompt_logits
from tests.engine.paged import load

MIB = 1024**2


class FakeMemory:
    """A GPU's memory as torch tells of it, its peak found by watching the model run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, in_use: int) -> None:
        self.step_tokens: list[int] = []
        self.peaks = iter([100 * MIB, 160 * MIB])
        answers: dict[str, Callable[..., Any]] = {
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda: None,
            "memory_allocated": lambda: 0,
            "max_memory_allocated": lambda: next(self.peaks),
            "mem_get_info": lambda: (total - in_use, total),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def watch(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = model.forward

        def watched(token_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.step_tokens.append(len(token_ids))
            return forward(token_ids, *rest)

        monkeypatch.setattr(model, "forward", watched)


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> Model:
    return load(tiny_model("llama"))


def gpu_config(**settings: Any) -> EngineConfig:
    """Of a GPU, though the model is on the processor."""
    config = resolve(EngineConfig(model="m", ops="reference", precision="fp32", **settings))
    return replace(config, device="cuda")


@pytest.mark.parametrize("num_tokens", [64, 100, 160])
def test_what_is_left_is_the_cache(num_tokens: int, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FakeMemory(monkeypatch, total=10_000 * MIB, in_use=3_000 * MIB)
    memory.watch(model, monkeypatch)
    config = gpu_config(gpu_memory_utilization=0.8, max_num_batched_tokens=250, max_num_seqs=20)
    found = kv_cache_bytes(config, model, num_tokens)
    logits_bytes = 4 * max(20 * model.vocab_size, num_prompt_logits(model.device))
    assert found == 8_000 * MIB - 3_000 * MIB - 160 * MIB - 3 * logits_bytes - 512 * MIB
    assert memory.step_tokens == [250]


def test_a_gpu_that_is_full_is_said_with_sizes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMemory(monkeypatch, total=10_000 * MIB, in_use=8_900 * MIB)
    with pytest.raises(ConfigError, match=r"is 0.9: of 8.8 GiB nothing is left .*8.7 GiB in use"):
        kv_cache_bytes(gpu_config(), model, 160)


def test_sizes_that_are_given_are_not_measured(model: Model) -> None:
    assert kv_cache_bytes(gpu_config(kv_cache_bytes=77), model, 160) == 77
    assert kv_cache_bytes(gpu_config(num_blocks=9), model, 160) == 0
    assert kv_cache_bytes(replace(gpu_config(), device="cpu"), model, 160) == 2 * 1024**3


def test_8_bits_hold_almost_twice_the_tokens_of_bf16() -> None:
    class Sizes:
        num_layers, num_kv_heads, head_dim = 28, 8, 128
        max_position_embeddings, num_parameters, window_reason = 4096, 0, ""

    def blocks(**settings: Any) -> int:
        config = gpu_config(max_num_seqs=256, **settings)
        return runner_sizes(replace(config, precision="bf16"), Sizes(), 2**30).num_blocks

    assert blocks() == 2**30 // (2 * 28 * 16 * 8 * 128 * 2)
    assert blocks(kv_cache_dtype="fp8") == 2**30 // (2 * 28 * 16 * 8 * (128 + 4))
    assert blocks(kv_cache_dtype="int8") == blocks(kv_cache_dtype="fp8")
