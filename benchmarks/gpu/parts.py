"""Parts of a run: each a process of its own with a share of the time, whose failure costs only itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
TAIL_LINES = 60
GRACE_S = 3.0
"""After its time a part is told to end, and after this much more it is ended."""


@dataclass(frozen=True)
class Part:
    """What is run."""

    name: str
    command: list[str]
    """Arguments; `{seconds}` among them becomes the time that the part has, less a little to write down what
    it has."""
    limit_s: float
    proves: bool = False
    """Whether the run's exit status depends on it."""


@dataclass
class PartResult:
    """How it went."""

    name: str
    ending: str
    """passed, failed (exit status 1), crashed, timed out or not run."""
    seconds: float = 0.0
    status: int | None = None
    proves: bool = False
    output: list[str] = field(default_factory=list)
    """Its last lines."""


def run_parts(
    parts: Sequence[Part], budget_s: float, log: IO[str], on_result: Callable[[PartResult], None]
) -> list[PartResult]:
    """One after the other, none past the budget. `log` takes all that they say."""
    end = time.monotonic() + budget_s
    results: list[PartResult] = []
    for part in parts:
        left = end - time.monotonic()
        if left < GRACE_S + 1:
            result = PartResult(part.name, "not run", proves=part.proves)
        else:
            result = run_part(part, min(part.limit_s, left), log)
        results.append(result)
        on_result(result)
    return results


def run_part(part: Part, limit_s: float, log: IO[str]) -> PartResult:
    """Waits for it, and ends it and all that it started when its time is over."""
    start = time.monotonic()
    allowed = max(1.0, limit_s - GRACE_S)
    command = [argument.replace("{seconds}", str(int(allowed * 0.95))) for argument in part.command]
    log.write(f"\n== {part.name}: {' '.join(command)}\n")
    log.flush()
    offset = log.tell()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
    )
    timed_out = False
    try:
        process.wait(allowed)
    except subprocess.TimeoutExpired:
        timed_out = True
        _interrupt(process)
    except KeyboardInterrupt:
        _interrupt(process)
        raise
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()
    return PartResult(
        name=part.name,
        ending="timed out" if timed_out else ending_of(process.returncode),
        seconds=round(time.monotonic() - start, 1),
        status=process.returncode,
        proves=part.proves,
        output=_tail(Path(log.name), offset),
    )


def ending_of(status: int) -> str:
    """Exit status 1 and 2 are a part's own words; others, and signals, are not."""
    if status == 0:
        return "passed"
    return "failed" if status in (1, 2) else "crashed"


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, "-m", *arguments]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does it: a part then ends what it has started in groups of their own, which no signal to its
    own group reaches, and which on a GPU would keep its memory."""
    _signal(process, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(path: Path, offset: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
