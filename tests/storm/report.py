"""The figures of a storm: what was lost, what was computed twice, how long it took to go on."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from consumer.lease import job_key
from tests.storm.faults import Blow, Faults
from tests.storm.ledger import FAULTS, Ledger
from tests.storm.tally import Run

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def percentiles(values: Iterable[float]) -> dict[str, float | int]:
    """p50, p99 and the largest, by nearest rank; empty where there are no values."""
    ranked = sorted(values)
    if not ranked:
        return {"count": 0}
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    found = {name: round(ranked[math.ceil(share * len(ranked)) - 1], 3) for name, share in shares.items()}
    return {"count": len(ranked), **found}


def recomputed(ledger: Ledger, runs: Sequence[Run]) -> dict[str, dict[str, float | int]]:
    """By kind of job: output tokens in answers, and those that were generated beyond them.

    Every token that any engine made is counted, those of processes that were killed too. Cancelled jobs are
    left out: what they needed is unknown.
    """
    made: dict[str, int] = defaultdict(int)
    for run in runs:
        made[job_key(run.request_id)] += run.num_tokens
    needed: dict[str, int] = defaultdict(int)
    extra: dict[str, int] = defaultdict(int)
    for record in ledger.records.values():
        if record.num_tokens:
            for kind in (record.kind, "streamed" if record.followed else "not streamed", "all"):
                needed[kind] += record.num_tokens
                extra[kind] += made[record.job_id] - record.num_tokens
    return {
        kind: {
            "needed": needed[kind],
            "recomputed": extra[kind],
            "share": round(extra[kind] / max(needed[kind] + extra[kind], 1), 5),
        }
        for kind in sorted(needed)
    }


def recoveries(ledger: Ledger, runs: Sequence[Run], blows: Sequence[Blow]) -> dict[str, Any]:
    """From a blow to the next token, or the end, of each job that it met.

    A job whose next consumer was struck before it got anywhere counts from that second blow; `from the first
    blow` has it from the first.
    """
    progress: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        progress[job_key(run.request_id)].append(run.first_at)
    for record in ledger.records.values():
        if record.ended_at is not None:
            progress[record.job_id].append(record.ended_at)
    by_kind: dict[str, list[float]] = defaultdict(list)
    from_first: list[float] = []
    last_of: dict[tuple[str, float], tuple[float, str]] = {}
    for blow in blows:
        for job_id in blow.held:
            came = min((at for at in progress[job_id] if at > blow.at), default=None)
            if came is None or blow.kind == "server SIGKILL":
                continue
            from_first.append(came - blow.at)
            last_of[job_id, came] = (blow.at, blow.kind)
    for (_, came), (at, kind) in last_of.items():
        by_kind[kind].append(came - at)
        by_kind["all"].append(came - at)
    return {
        **{kind: percentiles(values) for kind, values in sorted(by_kind.items())},
        "from the first blow": percentiles(from_first),
        "server, from its kill to the next end": percentiles(_after_outages(ledger, blows)),
    }


def _after_outages(ledger: Ledger, blows: Sequence[Blow]) -> list[float]:
    ends = sorted(record.ended_at for record in ledger.records.values() if record.ended_at is not None)
    waits: list[float] = []
    for blow in blows:
        if blow.back_at is not None:
            waits += [next((end for end in ends if end > blow.back_at), blow.back_at) - blow.at]
    return waits


def figures(ledger: Ledger, runs: Sequence[Run], faults: Faults) -> dict[str, Any]:
    """All that a storm has shown."""
    return {
        "kills": {"all": len(faults.blows), **faults.counts},
        "jobs_hit": sum(len(blow.held) for blow in faults.blows if blow.kind != "server SIGKILL"),
        "jobs": {"all": len(ledger.records), **ledger.ended},
        "broken": {fault: sum(problem.fault == fault for problem in ledger.problems) for fault in FAULTS},
        "output_tokens": recomputed(ledger, runs),
        "recovery_s": recoveries(ledger, runs, faults.blows),
    }


def surroundings() -> dict[str, Any]:
    """Where and with what it was measured."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    dirty = subprocess.run(["git", "diff", "--quiet", "HEAD"], check=False).returncode != 0
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": model[0].partition(": ")[2] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit + ("+" if dirty else ""),
    }


def print_table(figures: dict[str, Any]) -> None:
    """The figures, one to a line."""
    for name, value in figures.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            print(f"{name}:")
            for inner_name, inner in value.items():
                print(f"    {inner_name:40} {_words(inner)}")
        else:
            print(f"{name:24} {_words(value)}")


def _words(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def write(figures: dict[str, Any], path: Path) -> None:
    """Keep the figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
