"""The tables of docs/benchmarks.md from a results file: `python -m benchmarks.queue.table [FILE]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"

COMMITS = {"text": "text prompts", "token_ids": "token ids", "batch_rows": "text, rows of a batch"}
WAYS = {
    "fenced": "claim and commit scripts",
    "bare": "the same reads and writes, bare",
    "acks": "XREADGROUP and XACK only",
}


def tables(found: dict[str, Any]) -> Sequence[str]:
    """Lines of Markdown."""
    enqueue, commit, latency = found["enqueue"], found["commit"], found["latency"]
    lines = ["| what | jobs/s | server CPU | consumer or client CPU | engine CPU |", "|---|---|---|---|---|"]
    lines += [_row(f"enqueue, {name}", way, "client") for name, way in enqueue.items()]
    lines += [_row(f"claim to commit, {words}", commit[name], "consumer") for name, words in COMMITS.items()]
    lines += [_row(words, found["fencing"][name], "client") for name, words in WAYS.items()]
    first, last = latency["first_event_ms"], latency["last_event_ms"]
    lines += [
        "",
        f"Submit to first event, idle: p50 {first['p50']} ms, p99 {first['p99']} ms; to the last of 4 tokens "
        f"p50 {last['p50']} ms, p99 {last['p99']} ms.",
        "",
        "| followers of one client | events/s | p50 | p99 | client CPU an event | server CPU | connections |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, ways in found["followers"].items():
        if isinstance(ways, dict):
            lines += [_followers(count, name, way) for name, way in ways.items()]
    memory = found["memory"]
    lines += [
        "",
        f"| {memory['jobs']:,} jobs of {memory['job_bytes']} bytes | queued | finished | finished, rows |",
        "|---|---|---|---|",
    ]
    lines += [_memory(name, settings) for name, settings in memory.items() if _is_setting(settings)]
    return lines


def _row(words: str, figures: dict[str, Any], ours: str) -> str:
    engine = figures.get("engine_cpu_us_per_job", "")
    cpu = f"{figures['server_cpu_us_per_job']} | {figures[f'{ours}_cpu_us_per_job']} | {engine}"
    return f"| {words} | {figures['per_s']:,} | {cpu} |"


def _followers(count: str, name: str, way: dict[str, Any]) -> str:
    latency = way["latency_ms"]
    cpu = f"{way['client_cpu_us_per_event']} us | {way['server_cpu_us_per_event']} us"
    return (
        f"| {int(count):,}, {name.replace('_', ' ')} | {way['per_s']:,} | {latency['p50']:.0f} ms | "
        f"{latency['p99']:.0f} ms | {cpu} | {way['connections']} |"
    )


def _is_setting(value: Any) -> bool:
    return isinstance(value, dict) and "queued_bytes_per_job" in value


def _memory(name: str, settings: dict[str, int]) -> str:
    words = "default settings" if name == "default" else f"`stream-node-max-{name.replace('_', ' ')}`"
    return f"| {words} | " + " | ".join(f"{settings[key]:,}" for key in settings) + " |"


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "queue.json"
    print("\n".join(tables(json.loads(path.read_text())["figures"])))
