"""What the comparison on a processor aims at, and whether a run reached it.

Ratios are of output tokens/s, so that a peer that could only be given a workload's means compares as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.engine import step_profile, table
from benchmarks.gpu.verdict import Verdict

STARTUP_S = 10.0
MEMORY_SHARE = 1.25
REDIS_SHARE = 0.97
MODEL = "qwen3-0.6b-32k"
HALVES = ("fp16", "bf16")
Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One figure and its bound."""

    name: str
    reached: float
    wanted: float
    at_most: bool = False

    @property
    def is_reached(self) -> bool:
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted


def reached(
    rows: Sequence[Row], profiles: Sequence[Row], through: Sequence[Row], verdict: Verdict
) -> list[Target]:
    """Those of which the run has both sides."""
    timed = [row for row in table.medians(rows) if "seconds" in row]
    ours = [row for row in timed if is_verified(row, verdict)]
    found = [*_against_peers(ours, timed), *_everywhere(ours, timed), *_costs(ours)]
    bounds = step_profile.TARGETS
    for one in profiles:
        if "error" not in one and one["model"] == MODEL:
            name = one["label"].split()[-1]
            found += [
                Target(f"{name} step: {key}", one[key], bound, key == "rest_share")
                for key, bound in bounds.items()
            ]
    found += [
        Target(f"{one['precision']} through Redis, share of the engine alone", one["share"], REDIS_SHARE)
        for one in through
        if "share" in one and one["model"] == MODEL
    ]
    return found


def _against_peers(ours: Sequence[Row], timed: Sequence[Row]) -> list[Target]:
    """The ratios that are named one by one."""
    wanted = [
        ("16 bits over the bar", "peers", HALVES, "bar", 1.7),
        ("fp32 over the bar", "peers", ("fp32",), "bar", 1.0),
        ("int8 over the bar", "peers", ("int8",), "bar", 3.0),
        ("fastest over generate", "peers", ("int8", *HALVES, "fp32"), "transformers generate", 8.0),
        ("int8 over llama.cpp Q8_0", "small-batch-1", ("int8",), "llama.cpp Q8_0", 1.7),
        ("16 bits over llama.cpp F16", "small-batch-1", HALVES, "llama.cpp F16", 2.0),
    ]
    found: list[Target] = []
    for name, workload, precisions, whom, bound in wanted:
        mine = [row for row in ours if _is(row, MODEL, workload) and row["precision"] in precisions]
        peers = [row for row in timed if row["system"] != "ours" and _is(row, MODEL, workload)]
        other = bar_of(peers) if whom == "bar" else fastest([p for p in peers if p["label"].startswith(whom)])
        best = fastest(mine)
        if best and other:
            found.append(Target(f"{name}, {workload}", ratio(best, other), bound))
    return found


def _everywhere(ours: Sequence[Row], timed: Sequence[Row]) -> list[Target]:
    """Behind no peer on any workload, with the fastest precision."""
    found: list[Target] = []
    for model, workload in dict.fromkeys((row["model"], row["workload"]) for row in ours):
        best = fastest([row for row in ours if _is(row, model, workload)])
        peers = [row for row in timed if row["system"] != "ours" and _is(row, model, workload)]
        other = fastest(peers)
        if best and other:
            found.append(Target(f"{model} {workload}: over the fastest peer", ratio(best, other), 1.0))
    return found


def _costs(ours: Sequence[Row]) -> list[Target]:
    """Start-up and memory, of the model that they are promised of."""
    found: list[Target] = []
    for row in ours:
        least = row["details"].get("least_bytes")
        if _is(row, MODEL, "peers") and least:
            share = row["peak_memory_bytes"] / least
            found.append(Target(f"{row['precision']}: start-up, s", row["startup_s"], STARTUP_S, True))
            found.append(
                Target(f"{row['precision']}: memory over weights and KV cache", share, MEMORY_SHARE, True)
            )
    return found


def lines(targets: Sequence[Target]) -> list[str]:
    """For a person."""
    return [f"{'aimed at':<58} {'reached':>8} {'wanted':>9}"] + [
        f"{one.name:<58} {one.reached:8.3f} {'<=' if one.at_most else '>='} {one.wanted:6.2f}"
        f"{'' if one.is_reached else '  missed'}"
        for one in targets
    ]


def is_verified(row: Row, verdict: Verdict) -> bool:
    """Whether it is a speed of ours that may be named."""
    return (
        row["system"] == "ours"
        and "seconds" in row
        and verdict.of_engine(row["precision"], row["kv_cache_dtype"])
    )


def peers_of(row: Row, rows: Sequence[Row]) -> list[Row]:
    """Those that were measured on the same workload."""
    same = [other for other in rows if _is(other, row["model"], row["workload"])]
    return [other for other in same if other["system"] != "ours" and "seconds" in other]


def bar_of(peers: Sequence[Row]) -> Row | None:
    """The fastest vLLM."""
    return fastest([peer for peer in peers if peer["system"] == "vllm"])


def fastest(rows: Sequence[Row]) -> Row | None:
    """By output tokens/s."""
    return max(rows, key=lambda row: row["output_tokens_per_s"], default=None)


def ratio(row: Row, other: Row) -> float:
    """How many times as fast."""
    return row["output_tokens_per_s"] / other["output_tokens_per_s"]


def _is(row: Row, model: str, workload: str) -> bool:
    return (row["model"], row["workload"]) == (model, workload)
