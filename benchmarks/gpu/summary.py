"""The short table at the end of a run, from the files that its parts have written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.engine import table as engine_table
from benchmarks.gpu.outcomes import Outcome
from benchmarks.gpu.parts import PartResult
from benchmarks.gpu.verdict import NOT_VERIFIED, load_verdict

SHOWN_FLOOR_S = 3e-6
"""Of cases that could take less, nearly all is the launch."""
SHOWN_FAILURES = 8


def table(out: Path, results: list[PartResult]) -> list[str]:
    """Lines: what failed, operations, engines, parts. A file that is not there costs only its lines."""
    lines = ["", "== failed tests", *_failures(out), "", "== operations, the worst size of each"]
    lines += [*_kernels(out), "", "== engines", *_engines(out), "", "== parts"]
    for result in results:
        proves = "proves" if result.proves else "measures"
        counted = _counts(out, result.name)
        lines.append(f"{result.name:<16} {proves:<9} {result.ending:<10} {result.seconds:6.0f} s  {counted}")
    verdict = load_verdict(out / "verdict.json")
    for what, found in (("operations", verdict.ops), ("engine", verdict.engine)):
        words = (f"{name} {'passed' if passed else 'FAILED'}" for name, passed in sorted(found.items()))
        lines.append(f"{what}: {', '.join(words) or NOT_VERIFIED}")
    return lines


def _failures(out: Path) -> list[str]:
    lines: list[str] = []
    for name in ("kernel_tests.json", "equality.json"):
        failed = [one for one in _read(out / name) or [] if Outcome(**one).is_bad]
        for one in failed[:SHOWN_FAILURES]:
            said = [line for line in one["message"].strip().splitlines() if line.startswith("E ")]
            said = said or one["message"].strip().splitlines()[-1:]
            lines.append(f"{one['result']}: {one['test'][:90]}: {(said[0] if said else '')[:150]}")
        if len(failed) > SHOWN_FAILURES:
            lines.append(f"… and {len(failed) - SHOWN_FAILURES} more in {name}")
    return lines or ["none"]


def _kernels(out: Path) -> list[str]:
    found = _read(out / "kernels.json")
    if not found:
        return ["nothing was measured"]
    verdict = load_verdict(out / "verdict.json")
    rows = [row for row in found["rows"] if "seconds" in row and verdict.of_op(row["file"])]
    rates = found["ceilings"]
    lines = [
        f"copy {rates['copy_bytes_per_s'] / 1e12:.3f}, read {rates['read_bytes_per_s'] / 1e12:.3f} TB/s, "
        f"product {rates['matmul_flops_per_s'] / 1e12:.2f} TFLOP/s"
    ]
    for row in _worst(rows):
        lines.append(
            f"{row['op']:<17} {row['model']:<13} {row['size']:<34} {row['seconds'] * 1e6:9.1f} us "
            f"{row['of_floor']:6.1%} of its floor's rate, {row['of_equal_copy']:6.1%} of an equal copy's"
        )
    errors = Counter(row["op"] for row in found["rows"] if "error" in row)
    silent = sorted({row["op"] for row in found["rows"] if not verdict.of_op(row["file"])})
    if errors:
        lines.append("raised: " + ", ".join(f"{op} in {count} cases" for op, count in errors.items()))
    if silent:
        lines.append(f"{NOT_VERIFIED}: {', '.join(silent)}")
    return lines


def _worst(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each operation and model the case that is farthest from its floor."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    long = [row for row in rows if row["floor_s"] >= SHOWN_FLOOR_S] or rows
    for row in sorted(long, key=lambda row: row["of_floor"]):
        worst.setdefault((row["op"], row["model"]), row)
    return list(worst.values())


def _engines(out: Path) -> list[str]:
    found = _read(out / "engine.json")
    if not found or not found["rows"]:
        return ["nothing was measured"]
    return engine_table.lines(found["rows"], load_verdict(out / "verdict.json"))


def _counts(out: Path, part: str) -> str:
    name = {"kernel tests": "kernel_tests.json", "engine equality": "equality.json"}.get(part)
    outcomes = (_read(out / name) or []) if name else []
    return ", ".join(f"{n} {result}" for result, n in Counter(one["result"] for one in outcomes).items())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # a part that was killed may have left half a file, or none
        return None
