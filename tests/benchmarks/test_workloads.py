"""Workloads are what they say they are, the same every time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.engine.shapes import SHAPES, write_folder
from benchmarks.engine.workloads import WORKLOADS, load_workload, make_workload, nano_vllm
from engine.loading import describe
from engine.models.folder import read_config
from engine.models.spec import DecoderSpec


def test_nano_vllm_is_drawn_as_its_bench_draws() -> None:
    random.seed(0)
    prompts = [[random.randint(0, 10000) for _ in range(random.randint(100, 1024))] for _ in range(256)]
    outputs = [random.randint(100, 1024) for _ in range(256)]
    workload = nano_vllm()
    assert [job.prompt_token_ids for job in workload.jobs] == prompts
    assert [job.max_tokens for job in workload.jobs] == outputs
    assert workload.num_output_tokens == 133_966
    assert workload.temperature == 0.6


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_the_same_every_time_and_survive_the_disk(name: str, tmp_path: Path) -> None:
    workload = make_workload(name, 32_000)
    workload.save(tmp_path / "workload.json")
    assert load_workload(tmp_path / "workload.json") == make_workload(name, 32_000) == workload
    prefix = workload.jobs[0].prompt_token_ids[: workload.shared_prefix]
    for job in workload.jobs:
        assert job.prompt_token_ids[: workload.shared_prefix] == prefix
        assert len(job.prompt_token_ids) > workload.shared_prefix
        assert job.max_tokens >= 1


def test_ids_fit_a_small_vocabulary() -> None:
    workload = make_workload("nano-vllm", 512)
    assert max(max(job.prompt_token_ids) for job in workload.jobs) < 512
    assert workload.num_output_tokens == 133_966


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_count_the_parameters_that_the_engine_reads(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    spec = describe(read_config(write_folder(shape, tmp_path / name)))
    assert isinstance(spec, DecoderSpec)
    matrices = sum(param.shape[0] * param.shape[1] for param, _ in spec.params if len(param.shape) == 2)
    assert shape.num_params == matrices
    assert spec.num_kv_heads * spec.head_dim == shape.kv_size


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen3-0.6b", 0.596), ("llama-3.1-8b", 8.030), ("qwen3-8b", 8.190), ("llama-3.2-1b", 1.236)],
)
def test_shapes_have_their_published_sizes(name: str, billions: float) -> None:
    assert SHAPES[name].num_params / 1e9 == pytest.approx(billions, abs=0.001)
