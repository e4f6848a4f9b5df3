"""The parts of a run, in order: what proves, then what measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import Part, python

KERNEL_TESTS = "tests/kernels/triton"
CPU_KERNEL_TESTS = "tests/kernels"
ENGINE_TESTS = "tests/gpu"
LEFT_OUT = ("test_compile.py",)
"""Of the operations' tests: compiling ahead of time, which needs no GPU and takes minutes."""
RULES = ("test_near_ties.py",)
"""Of the engine's: what needs no device."""
CPU_LEFT_OUT = (
    *("test_exact.py", "test_ops.py", "test_attention.py", "test_attention_features.py", "test_sample.py"),
)
"""Of the processor's: the longest, as it is the parts that are tried there and not the operations."""


def gpu_parts(out: Path, minutes: float) -> list[Part]:
    """Shares of the whole; what one leaves over, those after it have."""
    whole = 60 * minutes
    verdict = str(out / "verdict.json")
    return [
        Part(
            "device", python("benchmarks.gpu.device", "--out", str(out / "device.json")), 0.12 * whole, True
        ),
        _tests("kernel tests", KERNEL_TESTS, out / "kernel_tests.json", 0.28 * whole, (14, 3), LEFT_OUT),
        _tests("engine equality", ENGINE_TESTS, out / "equality.json", 0.3 * whole, (14, 14), RULES),
        Part(
            "kernels",
            python(
                *("benchmarks.kernels", "--seconds", "{seconds}", "--budget", "0.06"),
                *("--verdict", verdict, "--out", str(out / "kernels.json")),
            ),
            0.17 * whole,
        ),
        Part(
            "engine",
            python(
                *("benchmarks.engine", "--plan", "gpu", "--seconds", "{seconds}"),
                *("--verdict", verdict, "--out", str(out / "engine.json")),
            ),
            whole,
        ),
    ]


def cpu_parts(out: Path, minutes: float) -> list[Part]:
    """The same with the processor's operations, at sizes that prove no more than that the parts run."""
    whole = 60 * minutes
    verdict = str(out / "verdict.json")
    device = python("benchmarks.gpu.device", "--cpu", "--out", str(out / "device.json"))
    return [
        Part("device", device, 0.3 * whole, True),
        _tests(
            "kernel tests", CPU_KERNEL_TESTS, out / "kernel_tests.json", 0.35 * whole, (1, 1), CPU_LEFT_OUT
        ),
        _tests("engine equality", ENGINE_TESTS, out / "equality.json", 0.5 * whole, (1, 1)),
        Part(
            "kernels",
            python(
                *("benchmarks.kernels", "--cpu", "--seconds", "{seconds}", "--budget", "0.005"),
                *("--verdict", verdict, "--out", str(out / "kernels.json")),
            ),
            0.25 * whole,
        ),
        Part(
            "engine",
            python(
                *("benchmarks.engine", "--plan", "smoke", "--seconds", "{seconds}"),
                *("--verdict", verdict, "--out", str(out / "engine.json")),
            ),
            whole,
        ),
    ]


def _tests(
    name: str,
    folder: str,
    out: Path,
    limit_s: float,
    processes: tuple[int, int],
    left_out: Sequence[str] = (),
) -> Part:
    """processes: at a time, and of each file. Compiling Triton's kernels keeps a core busy each."""
    command = python("benchmarks.gpu.pytests", folder, "--out", str(out), "--limit", "{seconds}")
    command += ["--jobs", str(processes[0]), "--shards", str(processes[1])]
    return Part(name, command + (["--leave-out", *left_out] if left_out else []), limit_s, proves=True)
