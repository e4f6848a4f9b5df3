"""The table of an engine benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.engine.ceiling import Rates
from benchmarks.engine.comparison import ceiling_of
from benchmarks.engine.session import Session
from benchmarks.gpu.verdict import NOT_VERIFIED, Verdict

PREDICTED = [
    *(("qwen3-0.6b", name) for name in ("nano-vllm", "prefill-heavy", "shared-prefix", "decode-heavy")),
    *(("qwen3-0.6b", name) for name in ("small-batch-1", "small-batch-8")),
    *((model, "nano-vllm") for model in ("llama-3.2-1b", "llama-3.1-8b", "qwen3-8b")),
]
HEAD = (
    f"{'model':<15} {'workload':<14} {'system':<24} {'s':>8} {'out tok/s':>10} {'all tok/s':>10} "
    f"{'x peer':>7} {'ceiling':>8} {'gap':>6} {'GiB':>6} {'start s':>7}"
)


def lines(rows: Sequence[dict[str, Any]], verdict: Verdict) -> list[str]:
    """Of rows of the same model, workload and system, the one of median time. Ours carry no speed, and what
    is compared with them no ratio, unless their precision is verified."""
    found = [HEAD]
    for row in medians(rows):
        label = row["label"] + ("" if row.get("exact", True) else "*")
        start = f"{row['model']:<15} {row['workload']:<14} {label:<24} "
        if "seconds" not in row:
            found.append(start + last_line(row["error"]))
        elif row["system"] == "ours" and not verdict.of_engine(row["precision"], row["kv_cache_dtype"]):
            found.append(f"{start}{NOT_VERIFIED}")
        else:
            found.append(start + _figures(row, rows))
    return found


def ceilings(rates: Rates) -> list[str]:
    """Markdown: the least seconds of each model and workload on a device of these rates, in bfloat16."""
    found = [
        "| model | workload | steps | weights s | KV s | prefill s | out tok/s | with FP8 KV |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, name in PREDICTED:
        session = Session("ours", model, [name], "cuda", "bf16")
        whole = ceiling_of(session, name, rates)
        half = ceiling_of(replace(session, options={"kv_cache_dtype": "fp8"}), name, rates)
        found.append(
            f"| {model} | {name} | {whole['num_steps']:,} | {whole['weights_s']:.2f} | {whole['kv_s']:.2f} "
            f"| {whole['prefill_s']:.2f} | {whole['output_tokens_per_s']:,.0f} "
            f"| {half['output_tokens_per_s']:,.0f} |"
        )
    return found


def medians(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of each model, workload and system, in the order of their first ones."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["workload"], row["label"]), []).append(row)
    chosen: list[dict[str, Any]] = []
    for group in groups.values():
        timed = sorted((row for row in group if "seconds" in row), key=lambda row: row["seconds"])
        chosen.append(timed[(len(timed) - 1) // 2] if timed else group[0])
    return chosen


def ratio_to_peers(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    """How many times as fast as the fastest peer of the same run, by output tokens/s; None for peers and
    without any."""
    if row["system"] != "ours":
        return None
    peers = [
        other["output_tokens_per_s"]
        for other in medians(rows)
        if (other["model"], other["workload"]) == (row["model"], row["workload"])
        and other["system"] != "ours"
        and "seconds" in other
    ]
    return row["output_tokens_per_s"] / max(peers) if peers else None


def last_line(text: str) -> str:
    """What an error comes down to."""
    said = [line for line in text.strip().splitlines() if line.strip()]
    return (said[-1] if said else "no word")[:110]


def _figures(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    ratio = ratio_to_peers(row, rows)
    bound = row.get("ceiling")
    share = f"{bound['seconds'] / row['seconds']:8.1%}" if bound else " " * 8
    gap = f"{row['host_gap']:6.1%}" if row.get("host_gap") is not None else " " * 6
    return (
        f"{row['seconds']:8.2f} {row['output_tokens_per_s']:10,.1f} {row['total_tokens_per_s']:10,.1f} "
        f"{f'{ratio:.2f}' if ratio else '':>7} {share} {gap} {row['peak_memory_bytes'] / 2**30:6.1f} "
        f"{row['startup_s']:7.1f}"
    )
