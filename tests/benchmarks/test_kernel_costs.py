"""What operations must move and compute, by hand, and cases that can be run as they are listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.verdict import TESTED_IN, Verdict
from benchmarks.kernels import cost
from benchmarks.kernels.__main__ import CPU_CASES, NO_GPU
from benchmarks.kernels.cases import Case, all_cases
from benchmarks.kernels.ceilings import Ceilings
from benchmarks.kernels.inputs import Inputs
from benchmarks.kernels.timing import MAX_SETS, num_sets
from kernels.opset import load_op_set

ROOT = Path(__file__).parents[2]


def test_costs_by_hand() -> None:
    assert cost.elementwise(2, 3, 2, 4).num_bytes == 48  # two inputs, two outputs
    assert cost.linear(2, 3, 5, 2) == cost.Cost((15 + 6 + 10) * 2, 60)
    assert cost.kv_bytes(8, 128, 2) == 4096
    assert cost.kv_bytes(8, 128, 1) == 2 * 8 * (128 + 4)
    # two queries, the last of a context of 3: they see 2 and 3 keys
    found = cost.attention([(2, 3)], heads=4, kv_heads=2, head_dim=16, e=2, cache_e=2)
    assert found.num_bytes == 2 * 2 * 4 * 16 * 2 + 3 * (2 * 2 * 16 * 2)
    assert found.flops == 4 * 4 * 16 * (2 + 3)
    assert cost.moe(1, 8, 4, 10, 2, 2).flops == 2 * 2 * 3 * 8 * 4
    experts = 3 * 8 * 4 * 2
    assert cost.moe(10_000, 8, 4, 10, 2, 2).num_bytes == pytest.approx(10 * experts + 2 * 10_000 * 8 * 2)
    assert cost.moe(1, 8, 4, 10, 2, 2).num_bytes == pytest.approx(2 * experts + 2 * 8 * 2)


def test_a_floor_is_the_longer_of_moving_and_computing() -> None:
    ceilings = Ceilings(100.0, 120.0, 1000.0)
    assert ceilings.least_seconds(50, 100) == 0.5
    assert ceilings.least_seconds(50, 2000) == 2.0


def test_cases_cover_every_operation_and_have_names_of_their_own() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    packing = {"pack_linear", "pack_experts", "pack_router", "plan_attention", "philox", "rows"}
    small = {"take", "add", "scale", "copy"}  # a step has one or two, where it has any
    ops = load_op_set("cpu")
    wanted = {name for name in ops.__slots__ if callable(getattr(ops, name))} - packing - small - {"record"}
    assert {case.op for case in cases} == wanted
    assert all((ROOT / "kernels" / f"{case.file}.py").is_file() for case in cases)
    assert all(case.cost.num_bytes > 0 for case in cases)


@pytest.mark.parametrize("case", all_cases(**CPU_CASES), ids=lambda case: case.name)
def test_every_case_runs(case: Case) -> None:
    inputs = Inputs(load_op_set("cpu"), torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        call = inputs.make(case.op, case.sizes)
        call()
        call()  # on what the first one left behind


def test_inputs_rotate_through_more_than_the_cache() -> None:
    device = torch.device("cpu")
    assert num_sets(1 << 30, device) == 1
    assert num_sets(16 << 20, device) == 8
    assert num_sets(1, device) == MAX_SETS


def test_without_a_gpu_it_says_so() -> None:
    command, hidden = [sys.executable, "-m", "benchmarks.kernels"], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr.strip(), found.stdout) == (2, NO_GPU, "")


def test_speeds_of_tested_operations_alone_are_printed(tmp_path: Path) -> None:
    verdict, out = tmp_path / "verdict.json", tmp_path / "kernels.json"
    verdict.write_text(json.dumps({"ops": {"norm": True, "argmax": False}, "engine": {}}))
    command = [sys.executable, "-m", "benchmarks.kernels", "--cpu", "--budget", "0", "--out", str(out)]
    command += ["--verdict", str(verdict), "--ops", "rms_norm", "argmax", "rotary"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = {line.split()[0]: line for line in found.stdout.splitlines()}
    assert "%" in shown["rms_norm"]
    assert shown["argmax"].endswith("not verified")
    assert shown["rotary"].endswith("not verified")
    saved = json.loads(out.read_text())
    assert saved["verdict"]["ops"] == {"norm": True, "argmax": False}
    assert {row["op"] for row in saved["rows"]} == {"rms_norm", "argmax", "rotary"}
    assert all(row["seconds"] > 0 for row in saved["rows"])


def test_every_operation_has_tests_that_speak_for_it() -> None:
    """Else its speeds would never be printed."""
    folder = ROOT / "tests" / "kernels" / "triton"
    for case in all_cases():
        tested = TESTED_IN.get(case.file, case.file)
        assert (folder / f"test_{tested}.py").is_file(), case.name
        assert Verdict(ops={tested: True}).of_op(case.file)
