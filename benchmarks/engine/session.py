"""One system, one model, some workloads, in a process of its own: what is asked for, and what comes back.

Nothing here imports more than the standard library, as peers may live in other environments.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Session:
    """What a worker is told."""

    system: str
    """ours, transformers, generate, vllm or llama.cpp; accuracy, profile or redis: what else is measured of
    ours."""
    model: str
    """A name in `shapes.SHAPES`."""
    workloads: list[str]
    device: str
    precision: str
    """fp32, bf16, fp16 or int8; llama.cpp's F16 is fp16 here and its Q8_0 int8."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of ours: settings of EngineConfig beside those that the benchmark derives."""
    python: str = sys.executable
    program: str = ""
    """Of a system that is no Python: its file or folder."""
    limit_s: float = 600.0
    note: str = ""
    """Why there is another session of this system, where there is: part of its label."""

    @property
    def kv_cache_dtype(self) -> str:
        """Of ours."""
        return self.options.get("kv_cache_dtype", "auto")

    @property
    def label(self) -> str:
        """How tables name it."""
        words = [self.system, self.precision]
        if self.system == "llama.cpp":
            words[1] = {"fp16": "F16", "int8": "Q8_0"}.get(self.precision, self.precision)
        if self.system == "generate":
            words[0] = "transformers generate"
        if self.system == "ours":
            words[0] = f"ours ({self.options.get('ops', 'auto')})"
            if self.kv_cache_dtype != "auto":
                words.append(f"{self.kv_cache_dtype} KV")
        if self.system == "redis":
            words[0] = f"through Redis ({self.options.get('ops', 'auto')})"
        return " ".join([*words, *([self.note] if self.note else [])])


@dataclass
class Measured:
    """What one workload took."""

    workload: str
    seconds: float
    prompt_tokens: int
    output_tokens: int
    steps: int = 0
    step_ms: dict[str, float] = field(default_factory=dict)
    host_gap: float | None = None
    """The share of the time in which the device waited for the host, where the engine or a profile tells."""
    profile: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    """Whether it was this workload, job by job, and not only one of the same means."""


@dataclass
class Report:
    """What a worker writes, anew after each workload."""

    startup_s: float = 0.0
    peak_memory_bytes: int = 0
    memory_of: str = ""
    """`device`: what is taken of its memory; `process`: what was resident at most, of all its processes."""
    load_average: float = 0.0
    """Of the machine's last minute when the session began: what else it had to do."""
    details: dict[str, Any] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    error: str = ""

    def save(self, path: Path) -> None:
        """Replaces the file at once, as the worker may be killed at any time."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)))
        os.replace(part, path)


def load_report(path: Path) -> Report:
    """What `Report.save` wrote."""
    fields = json.loads(path.read_text())
    return Report(**{**fields, "measured": [Measured(**one) for one in fields["measured"]]})


def peak_memory(device: str) -> tuple[int, str]:
    """Bytes, and of what. Of a device: all that is taken of it now, whoever took it."""
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return total - free, "device"
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + children) * 1024, "process"
