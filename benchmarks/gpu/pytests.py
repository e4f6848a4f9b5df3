"""Runs a folder's test files, each in processes of its own, some at a time: one that crashes takes no other
with it, as a GPU's context is lost to everything else in its process.

`python -m benchmarks.gpu.pytests FOLDER --out FILE --limit SECONDS --jobs N --shards M`. The project's own
conftest is left out, as it wants a server of the queue; the folder's is used. Plugins that happen to be
installed are left out too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.gpu.outcomes import RECORD, SHARD, Outcome, read_outcomes

ROOT = Path(__file__).parents[2]
INI = Path(__file__).parent / "pytest.ini"
TAIL = 1500
POLL_S = 0.05
STUCK_S = 90.0
"""A test that takes longer hangs: its process is ended, so that the other files have the rest of the time."""
NO_TESTS = 5
"""pytest's exit status where nothing was collected."""
WHOLE = "0/1"


@dataclass
class _Running:
    file: Path
    shard: str
    process: subprocess.Popen[bytes]
    record: Path
    output: IO[bytes]
    started: float = field(default_factory=time.time)

    @property
    def is_stuck(self) -> bool:
        """Whether no test has begun or ended for too long."""
        heard = self.record.stat().st_mtime if self.record.is_file() else self.started
        return time.time() - heard > STUCK_S

    def end(self) -> list[Outcome]:
        """Its outcomes; a process that still runs is killed, with all that it has started."""
        timed_out = self.process.poll() is None
        if timed_out:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        try:
            return self.outcomes("timed out" if timed_out else "crashed")
        finally:
            self.output.close()

    def outcomes(self, ending: str) -> list[Outcome]:
        """Its tests', and one of the file where it ended without any or in a way of its own."""
        found = read_outcomes(self.record, self.file.name, ending)
        self.output.seek(0)
        tail = self.output.read().decode(errors="replace")[-TAIL:]
        for outcome in found:
            if outcome.result == ending:
                outcome.message = tail
        ended_well = self.process.returncode in (0, 1, NO_TESTS) and ending == "crashed"
        is_empty = self.process.returncode == NO_TESTS and self.shard != WHOLE
        if is_empty:  # a share of too few tests
            return found
        if not found or (not ended_well and not any(outcome.is_bad for outcome in found)):
            found.append(Outcome(self.file.name, ending, message=tail))
        return found


def run_files(
    files: Iterable[Path], limit_s: float, jobs: int = 1, shards: int = 1, out: Path | None = None
) -> list[Outcome]:
    """All outcomes, written to `out` after each process. What is not done after `limit_s` has timed out."""
    waiting = [(file, f"{i}/{shards}") for file in files for i in range(shards)]
    running: list[_Running] = []
    outcomes: list[Outcome] = []
    end = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory() as place:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(*waiting.pop(0), Path(place)))
                time.sleep(POLL_S)
                is_late = time.monotonic() > end
                ended = [one for one in running if is_late or one.process.poll() is not None or one.is_stuck]
                running = [one for one in running if one not in ended]
                for one in ended:
                    outcomes += one.end()
                if is_late:
                    outcomes += [
                        Outcome(file.name, "timed out", message="never started") for file, _ in waiting
                    ]
                    waiting = []
                if ended:
                    _write(outcomes, out)
        finally:  # of Ctrl-C, too
            for one in running:
                one.end()
    return outcomes


def _start(file: Path, shard: str, place: Path) -> _Running:
    name = f"{file.stem}-{shard.replace('/', '-')}"
    record, output = place / f"{name}.jsonl", (place / f"{name}.txt").open("w+b")
    command = [sys.executable, "-m", "pytest", str(file), "-q", "--tb=short", "-p", "benchmarks.gpu.recorder"]
    command += ["-c", str(INI), "--rootdir", str(ROOT), "--confcutdir", str(file.parent)]
    wanted = {RECORD: str(record), SHARD: shard, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **wanted},
        start_new_session=True,
    )
    return _Running(file, shard, process, record, output)


def _write(outcomes: list[Outcome], out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


def summary(outcomes: list[Outcome]) -> str:
    """`12 passed, 1 failed`."""
    counts = Counter(outcome.result for outcome in outcomes)
    return ", ".join(f"{count} {result}" for result, count in counts.items()) or "no tests"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.pytests", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--shards", type=int, default=1, help="processes that share a file")
    parser.add_argument("--leave-out", nargs="*", default=[], help="names of files")
    args = parser.parse_args()
    files = [
        file for file in sorted(args.folder.resolve().glob("test_*.py")) if file.name not in args.leave_out
    ]
    if not files:
        print(f"{args.folder} has no tests")
        return 2
    outcomes = run_files(files, args.limit, args.jobs, args.shards, args.out)
    for outcome in outcomes:
        if outcome.is_bad:
            lines = outcome.message.strip().splitlines()
            print(f"  {outcome.result}: {outcome.test}: {lines[-1][:160] if lines else ''}")
    print(summary(outcomes))
    return 1 if any(outcome.is_bad for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
