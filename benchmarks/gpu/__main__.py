"""Proves and measures the GPU path in one call: `python3 -m benchmarks.gpu` (or `make gpu`).

Checks the device, runs the operations' tests and the engine's equality with transformers, then times
operations and engines, within `--minutes` in all; a part that fails, crashes or hangs costs only itself.
Everything is written as it comes, under `--out`; a short table comes last. The status is 0 where every part
that proves something passed. `--cpu` runs the same parts on the processor at tiny sizes.

Nothing has to be installed: run it in the repository's root with the wheels that are missing laid beside
(PYTHONPATH); the first part says which those are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu.outcomes import Outcome
from benchmarks.gpu.parts import PartResult, run_parts
from benchmarks.gpu.plan import cpu_parts, gpu_parts
from benchmarks.gpu.summary import table
from benchmarks.gpu.verdict import Verdict, load_verdict, verdict_on_engine, verdict_on_ops

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
PROVING: dict[str, tuple[str, Callable[[Iterable[Outcome]], Verdict]]] = {
    "kernel tests": ("kernel_tests.json", verdict_on_ops),
    "engine equality": ("equality.json", verdict_on_engine),
}
"""Parts that run tests, where they leave the outcomes, and what these say."""
WRITTEN = (
    *("device.json", "kernel_tests.json", "equality.json", "kernels.json", "engine.json", "verdict.json"),
    *("parts.json", "log.txt"),
)
"""Everything that a run leaves: few files, in one folder."""


def main() -> int:
    args = _parse()
    begin = time.monotonic()
    name = f"{datetime.now(UTC):%Y-%m-%d-%H%M}{'-cpu' if args.cpu else ''}"
    out = (args.out or RESULTS / name).resolve()
    out.mkdir(parents=True, exist_ok=True)
    parts = cpu_parts(out, args.minutes) if args.cpu else gpu_parts(out, args.minutes)
    chosen = [part for part in parts if not args.parts or part.name in args.parts]
    results: list[PartResult] = []

    def on_result(result: PartResult) -> None:
        results.append(result)
        print(f"{result.name}: {result.ending} ({result.seconds:.0f} s)", flush=True)
        if result.ending != "passed":
            print("\n".join(f"  | {line}" for line in result.output[-8:]), flush=True)
        if result.name in PROVING:
            _extend_verdict(out, *PROVING[result.name])
        _write(out, results)

    for file in WRITTEN:  # of an earlier run into the same folder
        (out / file).unlink(missing_ok=True)
    with (out / "log.txt").open("w") as log:
        run_parts(chosen, 60 * args.minutes - (time.monotonic() - begin), log, on_result)
    print("\n".join(table(out, results)))
    print(f"{time.monotonic() - begin:.0f} s; written to {out}")
    proved = [result for result in results if result.proves]
    return 0 if proved and all(result.ending == "passed" for result in proved) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--cpu", action="store_true", help="the same parts on the processor, at tiny sizes")
    parser.add_argument("--parts", nargs="+", help="names of parts; default: all")
    parser.add_argument("--out", type=Path, help="a folder; default: benchmarks/results/gpu/DATE")
    return parser.parse_args()


def _extend_verdict(out: Path, name: str, judge: Callable[[Iterable[Outcome]], Verdict]) -> None:
    """What the tests so far say, for the parts that measure."""
    path = out / "verdict.json"
    file = out / name
    found = [Outcome(**one) for one in json.loads(file.read_text())] if file.is_file() else []
    load_verdict(path).merged(judge(found)).save(path)


def _write(out: Path, results: list[PartResult]) -> None:
    (out / "parts.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
