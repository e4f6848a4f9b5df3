"""What a comparison on a processor prints, plans and refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine import findings, plans, targets
from benchmarks.engine.comparison import run_session
from benchmarks.engine.session import Session
from benchmarks.engine.shapes import SHAPES
from benchmarks.engine.tree_memory import TreeMemory, high_water_bytes, tree
from benchmarks.gpu.verdict import Verdict

ROOT = Path(__file__).parents[2]
OURS = Session("ours", targets.MODEL, ["peers"], "cpu", "int8", {"ops": "cpu"})


def _row(session: Session, tokens_per_s: float, **changed: Any) -> dict[str, Any]:
    return {
        "model": session.model,
        "workload": session.workloads[0],
        "system": session.system,
        "device": "cpu",
        "label": session.label,
        "precision": session.precision,
        "kv_cache_dtype": "auto",
        "seconds": 2567 / tokens_per_s,
        "output_tokens_per_s": tokens_per_s,
        "total_tokens_per_s": 3 * tokens_per_s,
        "peak_memory_bytes": 2**30,
        "startup_s": 5.0,
        "details": {"least_bytes": 2**30},
        "exact": True,
        **changed,
    }


def _peer(system: str, precision: str, tokens_per_s: float, **changed: Any) -> dict[str, Any]:
    return _row(Session(system, OURS.model, ["peers"], "cpu", precision), tokens_per_s, **changed)


ROWS = [
    _row(OURS, 120.0),
    _peer("vllm", "bf16", 30.0),
    _peer("vllm", "fp32", 40.0),
    _peer("llama.cpp", "int8", 60.0, exact=False),
]
GOOD = Verdict(engine={"int8": True})


def test_ratios_are_to_the_fastest_vllm_and_to_each_peer() -> None:
    said = findings.ratios(ROWS, GOOD)[1]
    assert "the bar 3.00" in said
    assert "vllm bf16 4.00" in said
    assert "llama.cpp Q8_0* 2.00" in said
    assert findings.ratios(ROWS, Verdict()) == ["times as fast as"]


def test_what_is_only_the_means_of_a_workload_is_marked() -> None:
    result = {"rows": ROWS, "verdict": {"engine": {"int8": True}}}
    said = findings.lines(result)
    assert any("llama.cpp Q8_0* " in line for line in said)
    assert findings.MARKED in said
    assert findings.MARKED not in findings.lines({**result, "rows": ROWS[:3]})


def test_targets_need_both_sides_and_a_verdict() -> None:
    found = {one.name: one for one in targets.reached(ROWS, [], [], GOOD)}
    assert found["int8 over the bar, peers"].reached == 3.0
    assert found["int8 over the bar, peers"].is_reached
    assert found[f"{targets.MODEL} peers: over the fastest peer"].reached == 2.0
    assert found["int8: memory over weights and KV cache"].is_reached
    assert "16 bits over the bar, peers" not in found
    assert targets.reached(ROWS, [], [], Verdict()) == []
    late = [_row(OURS, 100.0, startup_s=11.0), *ROWS[1:]]
    missed = targets.lines(targets.reached(late, [], [], GOOD))
    assert [line.split("  ")[0] for line in missed if "missed" in line] == [
        "int8 over the bar, peers",
        "int8: start-up, s",
    ]


def test_redis_is_compared_with_the_engine_alone() -> None:
    alone, through, *_ = plans.redis_sessions([OURS])
    rows = [_row(alone, 100.0), _row(through, 96.0), _row(through, 98.0), _row(alone, 90.0)]
    (share,) = findings.redis_shares([*ROWS, *rows], GOOD)
    assert share["share"] == 0.98
    assert "98.0%" in findings.redis_lines([share])[1]
    assert findings.redis_shares(rows, Verdict()) == []
    broken = {key: value for key, value in rows[1].items() if key != "seconds"} | {"error": "no server"}
    assert "no server" in findings.redis_lines(findings.redis_shares([broken], GOOD))[1]
    # Nor are they rows of the table.
    said = findings.lines({"rows": [*ROWS, *rows], "verdict": {"engine": {"int8": True}}})
    assert not any("alone" in line for line in said[: len(ROWS) + 1])


def test_the_plan_for_a_processor_has_what_was_asked_for() -> None:
    peers = ["transformers", "vllm=/opt/python", "llama.cpp=/opt/bin"]
    plan = plans.cpu_plan(peers=peers)
    assert [one.precision for one in plan[:4]] == ["fp32", "bf16", "fp16", "int8"]
    assert all(one.system == "accuracy" for one in plan[:4])
    labels = {(one.label, name) for one in plan for name in one.workloads if one.model == targets.MODEL}
    for precision in plans.PRECISIONS:
        assert (f"ours (cpu) {precision}", "peers") in labels
        assert (f"through Redis (cpu) {precision}", "peers") in labels
    for label in ("vllm bf16", "llama.cpp F16"):
        assert {(label, name) for name in (*plans.LIGHT, *plans.HEAVY)} <= labels
    for label in ("vllm fp32", "llama.cpp Q8_0"):
        assert (label, "small-batch-1") in labels
    assert {one.model for one in plan} == {targets.MODEL, "llama-3.2-1b", "tiny"}
    assert all(one.model in SHAPES and one.python == "/opt/python" for one in plan if one.system == "vllm")
    few = plans.narrowed(plan, targets.MODEL, ["peers"])
    assert {name for one in few for name in one.workloads if one.system not in plans.EXTRAS} == {"peers"}
    assert {one.model for one in few} == {targets.MODEL}
    tiny = plans.narrowed(plan, "tiny", None)
    assert {one.model for one in tiny} == {"tiny"}
    assert any(one.system == "accuracy" for one in tiny)
    twice = plans.repeated(few, 2)
    assert sum(one.system == "accuracy" for one in twice) == 4
    assert sum(one.label == "vllm bf16" for one in twice) == 2


def test_accuracy_is_always_against_fp32() -> None:
    found = plans.accuracy_sessions([OURS], 100)
    assert [(one.precision, one.system) for one in found] == [("fp32", "accuracy"), ("int8", "accuracy")]
    assert found[1].options["questions"] == 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peer", "sglang"], "choose from 'transformers', 'generate', 'vllm[=PYTHON]', 'llama.cpp=PLACE'"),
        (["--peer", "llama.cpp=/nowhere"], "there is no /nowhere"),
        (["--peer", "vllm=/nowhere"], "there is no file /nowhere"),
        (["--precision", "int4"], "invalid choice: 'int4'"),
        (["--set", "max_num_seqs"], "is not NAME=JSON"),
        (["--repeat", "0"], "at least 1"),
        (["--questions", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_are_said(arguments: list[str], words: str, capsys: Any, monkeypatch: Any) -> None:
    from benchmarks.engine.options import parse

    monkeypatch.setattr(sys, "argv", ["engine", *arguments])
    with pytest.raises(SystemExit) as ended:
        parse(None)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_jobs_through_redis_are_all_answered() -> None:
    session = Session("redis", "tiny", ["tiny"], "cpu", "fp32", {"ops": "cpu", "max_num_seqs": 32})
    report = run_session(session, 90)
    assert report.error == ""
    assert report.measured[0].output_tokens == 48
    assert report.startup_s > 0


def test_memory_is_of_a_process_and_its_children() -> None:
    size = 64 << 20
    inner = f"import time; x = bytearray({size}); print(flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(tree(process.pid)) == 2
        with TreeMemory(process.pid) as memory:
            pass
        assert memory.peak_bytes > size > high_water_bytes(process.pid) > 0
    finally:
        for pid in reversed(tree(process.pid)):
            subprocess.run(["kill", "-9", str(pid)], check=False)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert high_water_bytes(process.pid) == 0
