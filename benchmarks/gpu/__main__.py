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
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO

from benchmarks.gpu.outcomes import Outcome
from benchmarks.gpu.parts import Part, PartResult, run_parts
from benchmarks.gpu.plan import cpu_parts, gpu_parts
from benchmarks.gpu.summary import table
from benchmarks.gpu.verdict import Verdict, load_verdict, verdict_on_engine, verdict_on_ops

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
CPU_RESULTS = Path(__file__).parents[2] / "out" / "gpu"
"""Of runs that prove nothing of a GPU: not kept with the project."""
NAMES = [part.name for part in gpu_parts(RESULTS, 1)]
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
    out = args.out.resolve() if args.out else _new_folder(CPU_RESULTS if args.cpu else RESULTS)
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
    try:
        with (out / "log.txt").open("w") as log:
            end = begin + 60 * args.minutes
            if not args.cpu and _lacks_gpu(out, parts[0], log, end, on_result):
                print(
                    "no GPU here: nothing was proved and nothing measured (--cpu tries the parts themselves)"
                )
                if not args.out:
                    shutil.rmtree(out)
                return 2
            rest = chosen if args.cpu else [part for part in chosen if part is not parts[0]]
            run_parts(rest, end - time.monotonic(), log, on_result)
    except KeyboardInterrupt:
        print("ended by Ctrl-C; until then:")
        print("\n".join(table(out, results)))
        print(f"written to {out}")
        return 130
    print("\n".join(table(out, results)))
    print(f"{time.monotonic() - begin:.0f} s; written to {out}")
    proved = [result for result in results if result.proves]
    return 0 if proved and all(result.ending == "passed" for result in proved) else 1


def _new_folder(parent: Path) -> Path:
    """Of this run alone, also if another begins in the same second."""
    for serial in count(1):
        folder = parent / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}{'' if serial == 1 else f'-{serial}'}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder.resolve()
    raise AssertionError("there is always another number")


def _lacks_gpu(
    out: Path, part: Part, log: IO[str], end: float, on_result: Callable[[PartResult], None]
) -> bool:
    """Looks at the device first: without one the other parts would only spend their time."""
    run_parts([part], end - time.monotonic(), log, on_result)
    found = out / "device.json"
    return found.is_file() and json.loads(found.read_text()).get("gpu") is None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--cpu", action="store_true", help="the same parts on the processor, at tiny sizes")
    parser.add_argument(
        "--parts", nargs="+", choices=NAMES, help="default: all; the device is looked at anyway"
    )
    parser.add_argument(
        "--out", type=Path, help="a folder; default: benchmarks/results/gpu/DATE, or out/gpu/DATE with --cpu"
    )
    args = parser.parse_args()
    if args.minutes <= 0:
        parser.error("argument --minutes: more than 0 are needed")
    return args


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
