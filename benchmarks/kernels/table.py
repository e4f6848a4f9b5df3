"""The table of a kernel benchmark, and of the floors that it is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.gpu.verdict import NOT_VERIFIED, Verdict
from benchmarks.kernels.cases import Case
from benchmarks.kernels.ceilings import Ceilings

HEAD = (
    f"{'operation':<17} {'model':<14} {'size':<32} {'us':>9} {'floor':>9} {'GB/s':>7} {'copy':>6} "
    f"{'equal':>6} {'dot':>6}"
)


def lines(rows: Sequence[dict[str, Any]], verdict: Verdict) -> list[str]:
    """Microseconds, the least that they could be, and shares: of the large copy's rate, of the rate of a copy
    that moves as much, and of the large product's."""
    found = [HEAD]
    for row in rows:
        start = f"{row['op']:<17} {row['model']:<14} {row['size']:<32} "
        if "error" in row:
            found.append(start + row["error"].strip().splitlines()[-1][:80])
        elif not verdict.of_op(row["file"]):
            found.append(start + NOT_VERIFIED)
        else:
            dot = f"{row['of_matmul']:6.1%}" if row["of_matmul"] > 0.0005 else ""
            found.append(
                f"{start}{row['seconds'] * 1e6:9.1f} {row['floor_s'] * 1e6:9.1f} "
                f"{row['bytes'] / row['seconds'] / 1e9:7.0f} {row['of_copy']:6.1%} "
                f"{row['of_equal_copy']:6.1%} {dot:>6}"
            )
    return found


def floors(cases: Iterable[Case], ceilings: Ceilings) -> list[str]:
    """Markdown: what each case moves and computes, and the time that follows on a device of these rates."""
    found = ["| operation | model | size | MB | GFLOP | least us |", "|---|---|---|---|---|---|"]
    for case in cases:
        least = ceilings.least_seconds(case.cost.num_bytes, case.cost.flops) * 1e6
        flops = f"{case.cost.flops / 1e9:.1f}" if case.cost.flops else ""
        moved = f"{case.cost.num_bytes / 1e6:.2f}"
        found.append(f"| {case.op} | {case.shape} | {case.size} | {moved} | {flops} | {least:.1f} |")
    return found
