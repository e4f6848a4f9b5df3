"""The engine benchmark at its smallest, and the rules of its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine import table
from benchmarks.engine.comparison import run_session
from benchmarks.engine.device_profile import idle_share, summarize
from benchmarks.engine.plans import PLANS, chosen_plan, repeated
from benchmarks.engine.session import Measured, Report, Session, load_report
from benchmarks.engine.shapes import SHAPES
from benchmarks.engine.workloads import WORKLOADS
from benchmarks.gpu.verdict import Verdict

ROOT = Path(__file__).parents[2]
OURS = Session("ours", "tiny", ["tiny"], "cpu", "fp32", {"ops": "cpu"})


def _row(system: str, seconds: float, **changed: Any) -> dict[str, Any]:
    session = OURS if system == "ours" else Session(system, "tiny", ["tiny"], "cpu", "fp32")
    return {
        "model": "tiny",
        "workload": "tiny",
        "system": system,
        "label": session.label,
        "precision": "fp32",
        "kv_cache_dtype": "auto",
        "seconds": seconds,
        "output_tokens_per_s": 48 / seconds,
        "total_tokens_per_s": 168 / seconds,
        "ceiling": {"seconds": 1.0},
        "peak_memory_bytes": 2**30,
        "startup_s": 1.0,
        "host_gap": 0.031,
        **changed,
    }


def test_a_tiny_run_prints_no_speed_without_a_verdict(tmp_path: Path) -> None:
    out, verdict = tmp_path / "engine.json", tmp_path / "verdict.json"
    command = [sys.executable, "-m", "benchmarks.engine", "--ops", "cpu", "--workload", "tiny"]
    found = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=100
    )
    ours, theirs = [line for line in found.stdout.splitlines() if line.startswith("tiny ")]
    assert ours.endswith("not verified")
    assert "transformers fp32" in theirs
    assert "GiB" in found.stdout
    saved = json.loads(out.read_text())
    assert [row["system"] for row in saved["rows"]] == ["ours", "transformers"]
    assert all(row["output_tokens"] == 48 and row["seconds"] > 0 for row in saved["rows"])
    assert all(row["peak_memory_bytes"] > 0 and row["startup_s"] > 0 for row in saved["rows"])
    assert saved["rows"][0]["ceiling"]["seconds"] > 0
    assert {"commit", "device", "torch", "verdict", "rates"} <= saved.keys()
    verdict.write_text(json.dumps({"ops": {}, "engine": {"fp32": True}}))
    again = table.lines(saved["rows"], Verdict(**json.loads(verdict.read_text())))
    assert "not verified" not in "\n".join(again)


def test_a_speed_needs_its_own_precision_and_cache() -> None:
    rows = [_row("ours", 2.0), _row("transformers", 6.0)]
    shown = "\n".join(table.lines(rows, Verdict(engine={"fp32": True})))
    assert "3.00" in shown
    assert "50.0%" in shown
    assert "3.1%" in shown
    for verdict in (Verdict(), Verdict(engine={"fp32": False}), Verdict(engine={"bf16": True})):
        ours = table.lines(rows, verdict)[1]
        assert ours.endswith("not verified")
        assert "2.00" not in ours
    fp8 = [_row("ours", 2.0, kv_cache_dtype="fp8")]
    assert table.lines(fp8, Verdict(engine={"fp32": True}))[1].endswith("not verified")
    assert "24.0" in table.lines(fp8, Verdict(engine={"fp32": True, "fp8 KV": True}))[1]


def test_of_repeated_runs_the_median_is_shown_and_compared() -> None:
    rows = [_row("ours", 3.0), _row("vllm", 9.0), _row("vllm", 6.0), _row("ours", 1.0), _row("ours", 2.0)]
    chosen = table.medians(rows)
    assert [(row["system"], row["seconds"]) for row in chosen] == [("ours", 2.0), ("vllm", 6.0)]
    assert table.ratio_to_peers(chosen[0], rows) == 3.0
    assert table.ratio_to_peers(chosen[1], rows) is None


def test_a_failure_is_a_line_of_the_table() -> None:
    row = {**_row("vllm", 1.0), "error": "Traceback\nModuleNotFoundError: No module named 'vllm'"}
    del row["seconds"]
    assert "No module named 'vllm'" in table.lines([row], Verdict())[1]


def test_a_peer_that_is_not_there_costs_only_itself() -> None:
    report = run_session(Session("vllm", "tiny", ["tiny"], "cpu", "fp32"), 60)
    assert report.measured == []
    assert "vllm" in report.error


def test_a_session_is_stopped_after_its_time() -> None:
    report = run_session(OURS, 0.05)
    assert report.error.startswith("stopped after")


def test_a_setting_that_the_engine_lacks_is_an_error() -> None:
    session = Session("ours", "tiny", ["tiny"], "cpu", "fp32", {"no_such_setting": 1})
    assert "no_such_setting" in run_session(session, 60).error


def test_reports_survive_the_disk(tmp_path: Path) -> None:
    report = Report(startup_s=1.5, measured=[Measured("tiny", 1.0, 2, 3, host_gap=0.1)])
    report.save(tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report


def test_plans_name_what_there_is() -> None:
    for plan in PLANS.values():
        for session in plan():
            assert session.model in SHAPES
            assert set(session.workloads) <= set(WORKLOADS)
    plan = chosen_plan("tiny", ["tiny"], "cpu", ["fp32", "bf16"], [{}], ["vllm=/opt/python", "transformers"])
    assert [(one.system, one.precision) for one in plan] == [
        ("ours", "fp32"),
        ("ours", "bf16"),
        ("vllm", "bf16"),
        ("vllm", "fp32"),
        ("transformers", "fp32"),
    ]
    assert plan[2].python == "/opt/python"
    twice = repeated(plan, 2)
    assert twice == [*plan, *plan[::-1]]


@pytest.mark.parametrize(
    ("spans", "idle"),
    [
        ([(0.0, 10.0)], 0.0),
        ([(0.0, 4.0), (6.0, 10.0)], 0.2),
        ([(6.0, 10.0), (0.0, 8.0), (1.0, 2.0)], 0.0),
        ([(0.0, 1.0), (0.5, 2.0), (9.0, 10.0)], 0.7),
    ],
)
def test_idle_share_of_a_device(spans: list[tuple[float, float]], idle: float) -> None:
    assert idle_share(spans) == pytest.approx(idle)


def test_a_profile_adds_up_by_kernel() -> None:
    found = summarize([("a", 0.0, 1000.0), ("b", 1000.0, 1500.0), ("a", 2000.0, 4000.0)], 2)
    assert found["kernel_ms_per_step"] == {"a": 1.5, "b": 0.25}
    assert found["step_ms"] == 2.0
    assert found["idle_share"] == pytest.approx(0.125)
    assert "error" in summarize([], 2)
