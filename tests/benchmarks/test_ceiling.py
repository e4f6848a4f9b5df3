"""The ceiling's arithmetic, by hand where sizes allow it, and against published figures."""

from __future__ import annotations

import pytest

from benchmarks.engine.ceiling import Rates, ceiling
from benchmarks.engine.schedule import simulate
from benchmarks.engine.shapes import QWEN3_06B, TINY
from benchmarks.engine.workloads import WORKLOADS, Job, Workload, make_workload, nano_vllm, uniform


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(("max_num_seqs", "budget"), [(256, 16384), (7, 100), (1, 1)])
def test_simulated_steps_do_all_the_work(name: str, max_num_seqs: int, budget: int) -> None:
    workload = make_workload(name, 32_000)
    if budget == 1 and workload.num_prompt_tokens > 10_000:
        workload = Workload(name, workload.jobs[:3], 0.0)
    steps = simulate(workload, max_num_seqs, budget, prefix_cache=False)
    assert sum(step.prefill_tokens for step in steps) == workload.num_prompt_tokens
    assert sum(step.sampled_rows for step in steps) == workload.num_output_tokens
    lengths = [len(job.prompt_token_ids) for job in workload.jobs]
    assert sum(step.prefill_pairs for step in steps) == sum(n * (n + 1) // 2 for n in lengths)
    for step in steps:
        assert 0 < step.prefill_tokens + step.decode_tokens <= budget
        assert step.decode_tokens <= max_num_seqs


def test_a_shared_prefix_is_computed_once() -> None:
    workload = make_workload("shared-prefix", 32_000)
    steps = simulate(workload, 64, 4096)
    saved = 63 * (1000 // 16 * 16)
    assert sum(step.prefill_tokens for step in steps) == workload.num_prompt_tokens - saved
    assert sum(step.sampled_rows for step in steps) == workload.num_output_tokens


def test_two_steps_by_hand() -> None:
    """One prompt of 3 tokens, two outputs: a prefill that samples, and a decode with 4 tokens of context."""
    steps = simulate(Workload("", [Job([1, 2, 3], 2)], 0.0), 4, 16)
    assert [(s.prefill_tokens, s.prefill_pairs, s.decode_tokens, s.context_tokens) for s in steps] == [
        (3, 6, 0, 3),
        (0, 0, 1, 4),
    ]
    found = ceiling(TINY, steps, Rates(1.0, 1.0), weight_bytes=2, kv_bytes=2)
    per_token = 2 * 2 * 2 * 16 * 2  # layers, keys and values, heads, dimensions, bytes
    assert found.kv_s == (3 + 3 + 4 + 1) * per_token
    assert found.weights_s == 2 * TINY.read_params * 2
    linear = 2 * TINY.body_params * 3
    assert found.prefill_s == linear + 4 * 4 * 16 * 2 * 6 + 2 * 64 * 512
    assert found.seconds == found.weights_s + found.kv_s + found.prefill_s


@pytest.mark.parametrize(
    ("bandwidth", "flops", "published"), [(3.35e12, 798e12, 28_600), (4.8e12, 790e12, 40_400)]
)
def test_nano_vllm_has_the_published_ceiling(bandwidth: float, flops: float, published: float) -> None:
    """Nominal bandwidths of H100 and H200 with the products that were measured on them."""
    workload = nano_vllm()
    found = ceiling(QWEN3_06B, simulate(workload, 256, 16384), Rates(bandwidth, flops))
    assert workload.num_output_tokens / found.seconds == pytest.approx(published, rel=0.005)
    assert found.kv_s / (found.seconds - found.prefill_s) == pytest.approx(0.92, abs=0.005)
    assert found.roofline_seconds < found.seconds


def test_fp8_moves_half_and_its_scales() -> None:
    assert QWEN3_06B.kv_bytes_per_token(2) == 28 * 2 * 8 * 128 * 2 == 114_688
    assert QWEN3_06B.kv_bytes_per_token(1) == 28 * 2 * 8 * (128 + 4)
    steps = simulate(uniform("", 8, 64, 32), 8, 1024)
    half, full = (ceiling(QWEN3_06B, steps, Rates(1e12, 1e15), kv_bytes=size) for size in (1, 2))
    assert half.kv_s / full.kv_s == pytest.approx(132 / 256)
    assert half.weights_s == full.weights_s
