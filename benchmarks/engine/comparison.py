"""Runs sessions one after the other, each with its own time limit, and keeps what each gave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.engine.ceiling import Rates, ceiling
from benchmarks.engine.schedule import simulate
from benchmarks.engine.session import Report, Session, load_report
from benchmarks.engine.shapes import SHAPES, WEIGHT_BYTES, cache_bytes
from benchmarks.engine.tree_memory import TreeMemory
from benchmarks.engine.workloads import make_workload

ROOT = Path(__file__).parents[2]
TAIL = 2000
OVER = "stopped after"
SCHEDULES = {"cuda": (256, 16384), "cpu": (64, 1024)}
"""max_num_seqs and max_num_batched_tokens of our engine, and of the ceiling's simulation."""


def run_sessions(
    sessions: Iterable[Session], seconds: float, on_result: Callable[[Session, Report], None]
) -> None:
    """Each in its own process; one that would start with nothing left is reported as such."""
    end = time.monotonic() + seconds
    for session in sessions:
        left = end - time.monotonic()
        if left < 5:
            on_result(session, Report(error="not run: no time was left"))
            continue
        on_result(session, run_session(session, min(left, session.limit_s)))


def run_session(session: Session, limit_s: float) -> Report:
    """What the worker wrote; where it ended badly, with the end of what it said."""
    load_average = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as place:
        told, out, said = (Path(place) / name for name in ("session.json", "report.json", "said.txt"))
        told.write_text(json.dumps(asdict(session)))
        with said.open("wb") as file:
            process = subprocess.Popen(
                [session.python, "-m", "benchmarks.engine.worker", str(told), str(out)],
                cwd=ROOT,
                env=_environment(session),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            ending, peak_bytes = _ending(process, limit_s)
        report = load_report(out) if out.is_file() else Report()
        report.load_average = load_average
        if ending and not report.error:
            report.details["said"] = tail = said.read_text(errors="replace")[-TAIL:]
            report.error = ending if ending.startswith(OVER) else f"{ending}\n{tail}"
        if session.device == "cpu":
            report.peak_memory_bytes, report.memory_of = peak_bytes, "process"
        return report


def _ending(process: subprocess.Popen[bytes], limit_s: float) -> tuple[str, int]:
    """In words, empty where it ended well; and the most bytes that it and its children had."""
    with TreeMemory(process.pid) as memory:
        try:
            process.wait(limit_s)
            ending = "" if process.returncode == 0 else f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            ending = f"{OVER} {limit_s:.0f} s, its limit"
        finally:
            _kill(process)
    return ending, memory.peak_bytes


def _environment(session: Session) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if session.system == "vllm" and session.device == "cpu":
        return {"VLLM_CPU_KVCACHE_SPACE": "4", **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group: peers start processes of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def results_of(session: Session, report: Report, rates: Rates | None) -> list[dict[str, Any]]:
    """A row for each of the session's workloads; those that gave nothing say why."""
    measured = {one.workload: one for one in report.measured}
    rows: list[dict[str, Any]] = []
    for name in session.workloads:
        row: dict[str, Any] = {
            "model": session.model,
            "workload": name,
            "system": session.system,
            "device": session.device,
            "label": session.label,
            "precision": session.precision,
            "kv_cache_dtype": session.kv_cache_dtype,
            "startup_s": round(report.startup_s, 2),
            "peak_memory_bytes": report.peak_memory_bytes,
            "memory_of": report.memory_of,
            "load_average": report.load_average,
            "details": report.details,
        }
        if name in measured:
            one = measured[name]
            row |= {
                **asdict(one),
                "output_tokens_per_s": one.output_tokens / one.seconds,
                "total_tokens_per_s": (one.output_tokens + one.prompt_tokens) / one.seconds,
                "ceiling": ceiling_of(session, name, rates) if rates else None,
            }
        else:
            row["error"] = report.error or "it did not come so far"
        rows.append(row)
    return rows


def ceiling_of(session: Session, workload_name: str, rates: Rates) -> dict[str, Any]:
    """The least seconds of this workload, and output tokens/s that follow from them."""
    shape = SHAPES[session.model]
    workload = make_workload(workload_name, shape.vocab_size)
    max_num_seqs, budget = SCHEDULES[session.device]
    weight_bytes = WEIGHT_BYTES[session.precision]
    found = ceiling(
        shape,
        simulate(workload, max_num_seqs, budget),
        rates,
        weight_bytes=weight_bytes,
        kv_bytes=cache_bytes(session.precision, session.kv_cache_dtype),
    )
    return {
        **asdict(found),
        "output_tokens_per_s": workload.num_output_tokens / found.seconds,
        "roofline_tokens_per_s": workload.num_output_tokens / found.roofline_seconds,
    }
