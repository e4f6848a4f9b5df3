"""Engines on the same workloads: `python -m benchmarks.engine` (or `make bench-engine`).

Runs ours and each peer on a model of random weights, each in a process of its own, and prints seconds, output
and all tokens/s, how many times as fast as the fastest peer, the share of the ceiling (see `ceiling.py`), the
device's waits for the host, memory and start-up time. Our speeds are printed only where the equality tests of
their precision passed in the same run: `--verify` runs them first, `--verdict FILE` takes what
`benchmarks.gpu` found. On a processor `--gate` measures the accuracy of each precision instead (see
`gate.py`). `--plan gpu` is the list of that script, most important first; `--plan cpu` the comparison on a
processor (`make bench-engine-cpu`). `--predict` prints the ceilings of an H100 without measuring anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.engine import findings, gate, plans, table
from benchmarks.engine.ceiling import Rates
from benchmarks.engine.comparison import ROOT, results_of, run_sessions
from benchmarks.engine.options import parse, sessions_of
from benchmarks.engine.session import Report, Session
from benchmarks.gpu.device import nvidia_smi
from benchmarks.gpu.pytests import run_files, summary
from benchmarks.gpu.verdict import Verdict, load_verdict, verdict_on_engine
from benchmarks.surroundings import surroundings

PREDICTED = Rates(read_bytes_per_s=3.0e12, matmul_flops_per_s=798e12)
"""Of an H100 80GB HBM3: what its copies and its products of 8192³ in bfloat16 reach."""
EQUALITY_TESTS = ROOT / "tests" / "gpu"


def main() -> int:
    args = parse(__doc__)
    if args.predict:
        print("\n".join(table.ceilings(PREDICTED)))
        return 0
    verdict = _verdict(args)
    sessions = plans.repeated(sessions_of(args), args.repeat)
    for session in sessions:
        print(f"{session.label}, {session.model}: {', '.join(session.workloads)}", flush=True)
    rates = _rates(sessions[0].device, sessions[0].precision)
    result: dict[str, Any] = {
        "benchmark": "engine",
        **surroundings("torch", "triton", "transformers", "vllm"),
        "gpu": nvidia_smi(),
        "verdict": asdict(verdict),
        "rates": asdict(rates) if rates else None,
        "rows": [],
        "accuracy": {},
        "profiles": [],
    }
    _measure(args, sessions, rates, result)
    if any(one.system == "accuracy" for one in sessions):
        verdict = verdict.merged(gate.gate_verdict(result["accuracy"]))
    result["verdict"] = asdict(verdict)
    _save(args, result)
    print("\n".join(findings.lines(result)))
    print(f"written to {args.out}")
    return 0 if any(row["system"] == "ours" and "seconds" in row for row in result["rows"]) else 1


def _verdict(args: argparse.Namespace) -> Verdict:
    if not args.verify:
        return load_verdict(args.verdict)
    outcomes = run_files(sorted(EQUALITY_TESTS.glob("test_*.py")), args.verify_limit)
    print(f"equality tests: {summary(outcomes)}", flush=True)
    return verdict_on_engine(outcomes)


def _measure(
    args: argparse.Namespace, sessions: Sequence[Session], rates: Rates | None, result: dict[str, Any]
) -> None:
    """Adds what each session gave to the result, and saves it each time."""
    precision = sessions[0].precision

    def on_result(session: Session, report: Report) -> None:
        error = {"error": report.error} if report.error else {}
        found = {"model": session.model, "label": session.label, **report.details, **error}
        if session.system == "accuracy":
            result["accuracy"].setdefault(session.precision, []).append(found)
        elif session.system == "profile":
            result["profiles"].append(found)
        else:
            # What a processor's products reach is another thing in every precision.
            known = session.device == "cuda" or session.precision == precision
            result["rows"] += results_of(session, report, rates if known else None)
        _save(args, result)
        done = f"{len(report.measured)} workloads" if report.measured else "measured"
        words = table.last_line(report.error) if report.error else done
        print(f"  {session.label}, {session.model}: {words}", flush=True)

    with tempfile.TemporaryDirectory() as shared:
        told = [
            replace(one, options={**one.options, "shared": shared}) if one.system == "accuracy" else one
            for one in sessions
        ]
        run_sessions(told, args.seconds, on_result)


def _save(args: argparse.Namespace, result: dict[str, Any]) -> None:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def _rates(device: str, precision: str) -> Rates | None:
    """Measured in a process of its own, whose memory goes with it."""
    if precision == "int8":
        return None
    command = [sys.executable, "-m", "benchmarks.kernels.ceilings", "--device", device]
    command += ["--precision", precision, *(("--scale", "0.1") if device == "cpu" else ())]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", "") or str(error)
        print(f"  the ceilings could not be measured: {table.last_line(str(said))}")
        return None
    rates = json.loads(found.stdout.strip().splitlines()[-1])
    return Rates(rates["read_bytes_per_s"], rates["matmul_flops_per_s"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("ended by Ctrl-C", file=sys.stderr)
        sys.exit(130)
