"""A step's time by operations adds up, and the engine is the same under the clock."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.engine import step_profile
from benchmarks.engine.op_timer import OpTimer, StepTimes
from benchmarks.engine.ours import make_engine
from benchmarks.engine.shapes import TINY, write_folder
from kernels.linear import LinearWeight, linear, pack_linear
from kernels.opset import load_op_set


def test_a_clock_changes_no_result_and_sees_each_call() -> None:
    ops = load_op_set("cpu")
    weight = pack_linear(ops, torch.randn(6, 4), None)
    x = torch.randn(3, 4)
    timer = OpTimer()
    timed = timer.wrap(ops)
    results: list[torch.Tensor] = []
    step = timer.step(lambda: results.extend([linear(timed, x, weight), timed.argmax(x)[1]]))
    assert torch.equal(results[0], linear(ops, x, weight))
    assert step.linear_calls == [(3, weight)]
    assert step.ops_s.keys() == {"linear", "argmax"}
    assert 0 < step.gemm_s < step.step_s
    assert step.gemm_s + step.attention_s + step.rest_s == step.step_s
    assert timer.step(lambda: None).ops_s == {}


def test_shares_add_up_and_rates_are_of_what_was_computed() -> None:
    weight = LinearWeight(None, None, 8, 16, torch.float32, torch.device("cpu"))
    fast = StepTimes(1.0, {"linear": 0.5, "attention": 0.25, "rms_norm": 0.125}, [(4, weight)] * 3, 100)
    slow = StepTimes(9.0, {"linear": 8.0, "attention": 0.5}, [(4, weight)] * 3, 100)
    found = step_profile.summarize([slow, fast], 10, alone_s=0.25, read_bytes_per_s=8000.0)
    assert found["step_ms"] == 1000.0  # a disturbed step does not count
    assert (found["gemm_share"], found["attention_share"], found["rest_share"]) == (0.5, 0.25, 0.25)
    assert found["rest_ms"] == {"rms_norm": 125.0, "around the operations": 125.0}
    assert found["gemm_flops_per_s"] == 3 * 2 * 4 * 8 * 16 / 0.5
    assert found["gemm_of_alone"] == 0.5
    assert found["kv_bytes_per_s"] == 100 * 10 / 0.25
    assert found["kv_of_read"] == 0.5
    _, shares, rest = step_profile.lines([{"label": "profile fp32", **found}])
    assert shares.count("50.0%") == 3
    assert "rms_norm 125.00" in rest
    assert "no figures" in step_profile.lines([{"label": "profile fp32", "error": "no figures"}])[1]


def test_a_profile_of_the_engine_counts_its_layers(tmp_path: Path) -> None:
    folder = write_folder(TINY, tmp_path / "tiny")
    settings = {"model": str(folder), "load_format": "dummy", "precision": "fp32", "ops": "cpu"}
    engine = make_engine({**settings, "max_num_seqs": step_profile.ROWS, "max_model_len": 128})
    _, steps = step_profile.profile(engine, TINY, step_profile.STEPS + 8)
    for step in steps:
        rows = [rows for rows, _ in step.linear_calls]
        assert rows == [step_profile.ROWS] * (4 * TINY.num_layers + 1)
        params = sum(one.in_features * one.out_features for _, one in step.linear_calls)
        assert params == TINY.read_params
        assert 0 < step.rest_s < step.step_s
    # Two steps lie between: one without clocks. Each makes every context a token longer.
    assert steps[1].contexts - steps[0].contexts == 2 * step_profile.ROWS
    assert step_profile.linears_alone(engine.runner.model.ops, steps[0], 2) > 0
