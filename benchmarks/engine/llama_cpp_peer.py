"""llama.cpp's llama-batched-bench: `--peer llama.cpp=FOLDER`, with the folder or file of the built program.

It takes no workload: so many prompts of one length, all at once, then as many tokens of each. A workload of
unequal lengths stands there as its means, and is marked; all prompts of the `shared-prefix` workload count as
computed once, which flatters it. Threads are as many as there are cores, all else is its default.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine.gguf_file import TensorType
from benchmarks.engine.llama_cpp_model import write_model
from benchmarks.engine.session import Measured, Report, Session
from benchmarks.engine.shapes import SHAPES
from benchmarks.engine.workloads import Workload

PROGRAM = "llama-batched-bench"
KINDS: dict[str, TensorType] = {"fp16": "F16", "int8": "Q8_0", "fp32": "F32"}
"""What a precision is called there."""
TAIL = 1500
_TRIES, _QUICK_S = 3, 10.0


@dataclass(frozen=True)
class Arguments:
    """One run of the program."""

    prompt: int
    output: int
    count: int
    shared: bool
    """One prompt for all of them."""
    exact: bool
    """Whether this is the workload itself, or only its means."""

    def command(self, program: str, model: Path, threads: int) -> list[str]:
        """Its command line."""
        prompts = self.prompt * (1 if self.shared else self.count)
        context = prompts + self.output * self.count
        said = [program, "-m", str(model), "-c", str(context), "--output-format", "jsonl"]
        said += ["-npp", str(self.prompt), "-ntg", str(self.output), "-npl", str(self.count)]
        return [*said, "-t", str(threads), *(["-pps", "-kvu"] if self.shared else [])]


def arguments_of(workload: Workload) -> Arguments:
    """The nearest that the program can do."""
    count = len(workload.jobs)
    lengths = {(len(job.prompt_token_ids), job.max_tokens) for job in workload.jobs}
    return Arguments(
        prompt=max(1, round(workload.num_prompt_tokens / count)),
        output=max(1, round(workload.num_output_tokens / count)),
        count=count,
        shared=workload.shared_prefix > 0,
        exact=len(lengths) == 1 and not workload.shared_prefix,
    )


def parse(said: str) -> dict[str, Any]:
    """The program's figures among what it said. Raises ValueError where there are none."""
    for line in said.splitlines():
        start = line.find('{"n_kv_max"')
        if start >= 0:
            return json.loads(line[start:])
    raise ValueError(f"{PROGRAM} gave no figures; it said last:\n{said[-TAIL:]}")


def measured_of(workload: Workload, arguments: Arguments, figures: dict[str, Any]) -> Measured:
    """As the other systems report theirs; tokens as they were computed, of the means."""
    return Measured(
        workload=workload.name,
        seconds=figures["t"],
        prompt_tokens=arguments.prompt * arguments.count,
        output_tokens=figures["tg"] * figures["pl"],
        exact=arguments.exact,
        profile={"prompt_s": figures["t_pp"], "output_s": figures["t_tg"]},
    )


def program_at(place: str) -> str:
    """The program's file, of its folder or itself. Raises FileNotFoundError in words."""
    path = Path(place)
    path = path / PROGRAM if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: build llama.cpp's target {PROGRAM}")
    return str(path)


def run(session: Session, folder: Path, workloads: list[Workload], report: Report, out: Path) -> None:
    """Writes the model, then runs the program for each workload."""
    program, kind = program_at(session.program), KINDS[session.precision]
    model = folder / "model.gguf"
    write_model(SHAPES[session.model], folder, kind, model)
    threads = len(os.sched_getaffinity(0))
    report.details = {"type": kind, "threads": threads, "file_bytes": model.stat().st_size}
    for workload in workloads:
        arguments = arguments_of(workload)
        command = arguments.command(program, model, threads)
        figures, seconds = _figures(command)
        report.startup_s = seconds - figures["t"]
        report.measured.append(measured_of(workload, arguments, figures))
        report.save(out)


def _figures(command: list[str]) -> tuple[dict[str, Any], float]:
    """And the seconds of the whole process. What it says last is lost now and then where it ends at once."""
    for left in reversed(range(_TRIES)):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        try:
            return parse(done.stdout + done.stderr), seconds
        except ValueError:
            if not left or done.returncode or seconds > _QUICK_S:
                raise
    raise AssertionError("the last try raises")
