"""What a run found, for a person: `python -m benchmarks.engine.findings FILE` prints it again.

The table, then, of what there is: ratios to the bar and to each peer, accuracy, steps' profiles, the way
through Redis, and how that compares with what was aimed at. The bar is the fastest vLLM of the workload.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import gate, step_profile, table, targets
from benchmarks.engine.plans import ALONE
from benchmarks.gpu.verdict import Verdict

MARK = "*"
MARKED = (
    f"{MARK} not this workload, but as many requests of its mean lengths in one batch; "
    "of a shared prefix, with the whole prompt computed once"
)


def lines(result: dict[str, Any]) -> list[str]:
    """All of it."""
    verdict = Verdict(**result["verdict"])
    accuracy: dict[str, list[dict[str, Any]]] = result.get("accuracy", {})
    rows = [row for row in result["rows"] if not is_beside_redis(row)]
    found = table.lines(rows, verdict)
    if any(not row.get("exact", True) for row in rows):
        found.append(MARKED)
    if any(row["system"] == "vllm" and row.get("device") == "cpu" for row in rows):
        found += ["", *ratios(rows, verdict)]
    if accuracy:
        found += ["", *gate.lines(accuracy)]
    profiles = [one for one in result.get("profiles", ()) if allowed(one, verdict)]
    if profiles:
        found += ["", *step_profile.lines(profiles)]
    through = redis_shares(result["rows"], verdict)
    if through:
        found += ["", *redis_lines(through)]
    if accuracy:
        found += ["", *targets.lines(targets.reached(rows, profiles, through, verdict))]
    return found


def is_beside_redis(row: dict[str, Any]) -> bool:
    """Whether it belongs to the comparison of the engine alone with the way through Redis."""
    return row["system"] == "redis" or row["label"].endswith(f" {ALONE}")


def allowed(profile: dict[str, Any], verdict: Verdict) -> bool:
    """Whether the profile's precision may name its speed; a failure is no speed."""
    return "error" in profile or verdict.of_engine(profile["label"].split()[-1])


def ratios(rows: Sequence[dict[str, Any]], verdict: Verdict) -> list[str]:
    """Of each verified row of ours: output tokens/s as a multiple of the bar's, and of each peer's."""
    found = ["times as fast as"]
    chosen = table.medians(rows)
    for row in chosen:
        if not targets.is_verified(row, verdict):
            continue
        peers = targets.peers_of(row, chosen)
        bar = targets.bar_of(peers)
        said = [f"the bar {targets.ratio(row, bar):.2f}"] if bar else []
        said += [f"{peer['label']}{mark(peer)} {targets.ratio(row, peer):.2f}" for peer in peers]
        found.append(f"{row['model']:<15} {row['workload']:<14} {row['label']:<17} {', '.join(said)}")
    return found


def mark(row: dict[str, Any]) -> str:
    """For a row that stands for the workload without being it."""
    return "" if row.get("exact", True) else MARK


def redis_shares(rows: Sequence[dict[str, Any]], verdict: Verdict) -> list[dict[str, Any]]:
    """Of each precision: output tokens/s through Redis as a share of the engine's alone. The best of each
    side, as what disturbs a run only ever slows it."""
    beside = [row for row in rows if is_beside_redis(row)]
    found: list[dict[str, Any]] = []
    for key in dict.fromkeys((row["model"], row["workload"], row["precision"]) for row in beside):
        mine = [row for row in beside if (row["model"], row["workload"], row["precision"]) == key]
        errors = [row["error"] for row in mine if "seconds" not in row]
        rates = {
            system: max((row["output_tokens_per_s"] for row in mine if row["system"] == system), default=0.0)
            for system in ("ours", "redis")
        }
        one: dict[str, Any] = {"model": key[0], "workload": key[1], "precision": key[2]}
        if errors:
            found.append({**one, "error": table.last_line(errors[0])})
        elif verdict.of_engine(key[2]) and rates["ours"]:
            found.append({**one, **rates, "share": rates["redis"] / rates["ours"]})
    return found


def redis_lines(shares: Sequence[dict[str, Any]]) -> list[str]:
    """Of `redis_shares`, for a person."""
    found = [f"{'through Redis':<37} {'alone':>9} {'through':>9} {'share':>7}"]
    for one in shares:
        start = f"{one['model']:<15} {one['workload']:<14} {one['precision']:<6}"
        if "error" in one:
            found.append(f"{start} {one['error']}")
        else:
            found.append(f"{start} {one['ours']:9,.1f} {one['redis']:9,.1f} {one['share']:7.1%}")
    return found


if __name__ == "__main__":
    print("\n".join(lines(json.loads(Path(sys.argv[1]).read_text()))))
