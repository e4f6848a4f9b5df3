"""Engines on the same workloads: `python -m benchmarks.engine` (or `make bench-engine`).

Runs ours and each peer on a model of random weights, each in a process of its own, and prints seconds, output
and all tokens/s, how many times as fast as the fastest peer, the share of the ceiling (see `ceiling.py`), the
device's waits for the host, memory and start-up time. Our speeds are printed only where the equality tests of
their precision passed in the same run: `--verify` runs them first, `--verdict FILE` takes what
`benchmarks.gpu` found. `--plan gpu` is the list of that script, most important first. `--predict` prints the
ceilings of an H100 without measuring anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.engine import plans, table
from benchmarks.engine.ceiling import Rates
from benchmarks.engine.comparison import ROOT, results_of, run_sessions
from benchmarks.engine.session import Report, Session
from benchmarks.engine.shapes import SHAPES
from benchmarks.engine.workloads import WORKLOADS
from benchmarks.gpu.device import nvidia_smi
from benchmarks.gpu.pytests import run_files, summary
from benchmarks.gpu.verdict import load_verdict, verdict_on_engine
from benchmarks.surroundings import surroundings

PREDICTED = Rates(read_bytes_per_s=3.0e12, matmul_flops_per_s=798e12)
"""Of an H100 80GB HBM3: what its copies and its products of 8192³ in bfloat16 reach."""
RESULTS = Path(__file__).parents[1] / "results"
EQUALITY_TESTS = ROOT / "tests" / "gpu"


def main() -> int:
    args = _parse()
    if args.predict:
        print("\n".join(table.ceilings(PREDICTED)))
        return 0
    verdict = load_verdict(args.verdict)
    if args.verify:
        outcomes = run_files(sorted(EQUALITY_TESTS.glob("test_*.py")), args.verify_limit)
        verdict = verdict_on_engine(outcomes)
        print(f"equality tests: {summary(outcomes)}", flush=True)
    sessions = plans.repeated(_sessions(args), args.repeat)
    for session in sessions:
        print(f"{session.label}, {session.model}: {', '.join(session.workloads)}", flush=True)
    device = sessions[0].device
    rates = _rates(device, sessions[0].precision)
    result: dict[str, Any] = {
        "benchmark": "engine",
        **surroundings("torch", "triton", "transformers", "vllm"),
        "gpu": nvidia_smi(),
        "verdict": asdict(verdict),
        "rates": asdict(rates) if rates else None,
        "rows": [],
    }

    def on_result(session: Session, report: Report) -> None:
        result["rows"] += results_of(session, report, rates)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        words = table.last_line(report.error) if report.error else f"{len(report.measured)} workloads"
        print(f"  {session.label}, {session.model}: {words}", flush=True)

    run_sessions(sessions, args.seconds, on_result)
    print("\n".join(table.lines(result["rows"], verdict)))
    print(f"written to {args.out}")
    return 0 if any(row["system"] == "ours" and "seconds" in row for row in result["rows"]) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--plan", choices=plans.PLANS, help="a list of sessions, instead of the next options")
    parser.add_argument("--predict", action="store_true", help="print the ceilings of an H100 as Markdown")
    parser.add_argument("--model", choices=SHAPES, help="default: qwen3-0.6b, or tiny for the tiny workload")
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, help="default: nano-vllm; without a GPU, the plan cpu"
    )
    parser.add_argument("--ops", choices=("auto", "triton", "cpu", "reference"), default="auto")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--kv-cache-dtype", nargs="+", choices=("auto", "fp8"), default=["auto"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further engine settings")
    parser.add_argument("--peer", nargs="*", default=["transformers"], help="transformers, vllm[=PYTHON]")
    parser.add_argument("--repeat", type=int, default=1, help="times, in alternating order; prints medians")
    parser.add_argument("--seconds", type=float, default=3600, help="for all sessions together")
    parser.add_argument("--verify", action="store_true", help="run the equality tests first")
    parser.add_argument("--verify-limit", type=float, default=300, help="seconds for them")
    parser.add_argument("--verdict", type=Path, help="what the equality tests of this run found")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    args = parser.parse_args()
    if args.verdict is not None and not args.verdict.is_file():
        parser.error(f"argument --verdict: there is no file {args.verdict}")
    if args.repeat < 1:
        parser.error("argument --repeat: at least 1 is needed")
    for peer in args.peer:
        if peer.partition("=")[0] not in ("transformers", "vllm"):
            parser.error(
                f"argument --peer: invalid choice: {peer!r} (choose from 'transformers', 'vllm[=PYTHON]')"
            )
    return args


def _sessions(args: argparse.Namespace) -> list[Session]:
    if args.plan:
        return plans.PLANS[args.plan]()
    device = "cuda" if args.ops in ("auto", "triton") and _has_gpu() else "cpu"
    if not args.workload and device == "cpu":
        return plans.cpu_plan()  # the other would take hours
    args.workload = args.workload or ["nano-vllm"]
    settings = {name: json.loads(value) for name, value in (item.split("=", 1) for item in args.set)}
    options = [{"ops": args.ops, "kv_cache_dtype": kv, **settings} for kv in args.kv_cache_dtype]
    model = args.model or ("tiny" if args.workload == ["tiny"] else "qwen3-0.6b")
    precisions = args.precision or (["bf16"] if device == "cuda" else ["fp32"])
    return plans.chosen_plan(model, args.workload, device, precisions, options, args.peer)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _rates(device: str, precision: str) -> Rates | None:
    """Measured in a process of its own, whose memory goes with it."""
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
