"""Which sessions a run has, most important first: what comes last is lost where time runs out."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from typing import Any

from benchmarks.engine.session import Session

DEVICE_WORKLOADS = [
    *("nano-vllm", "small-batch-1", "small-batch-8", "shared-prefix", "prefill-heavy", "decode-heavy"),
]


def gpu_plan() -> list[Session]:
    """What one call of some minutes measures."""
    ours = Session("ours", "qwen3-0.6b", DEVICE_WORKLOADS, "cuda", "bf16", limit_s=130)
    fp8 = {"kv_cache_dtype": "fp8"}
    vllm = [replace(ours, system="vllm", workloads=["nano-vllm"], limit_s=120)]
    return [
        ours,
        replace(ours, system="transformers", workloads=["nano-vllm"], limit_s=90),
        *(vllm if importlib.util.find_spec("vllm") else []),
        replace(ours, workloads=["nano-vllm"], options=fp8, limit_s=60),
        replace(ours, model="llama-3.1-8b", workloads=["nano-vllm", "small-batch-1"], limit_s=90),
        replace(ours, model="qwen3-8b", workloads=["nano-vllm"], limit_s=80),
        replace(ours, model="llama-3.1-8b", workloads=["nano-vllm"], options=fp8, limit_s=80),
        replace(ours, system="transformers", workloads=["small-batch-8", "prefill-heavy"], limit_s=60),
    ]


def cpu_plan() -> list[Session]:
    """The same on a processor, at sizes that prove no more than that it runs."""
    ours = Session("ours", "tiny", ["tiny", "peers"], "cpu", "fp32", limit_s=60)
    return [ours, replace(ours, system="transformers", workloads=["tiny"])]


PLANS = {"gpu": gpu_plan, "cpu": cpu_plan}


def chosen_plan(
    model: str,
    workloads: list[str],
    device: str,
    precisions: list[str],
    settings: list[dict[str, Any]],
    peers: list[str],
) -> list[Session]:
    """Our engine in each precision with each of the settings, then each peer in the first precision.

    peers: `transformers`, `vllm`, or `vllm=PYTHON`, the interpreter that has it.
    """
    ours = [
        Session("ours", model, workloads, device, precision, options)
        for precision in precisions
        for options in settings
    ]
    others: list[Session] = []
    for peer in peers:
        name, _, python = peer.partition("=")
        others.append(Session(name, model, workloads, device, precisions[0], python=python or sys.executable))
    return ours + others


def repeated(sessions: list[Session], times: int) -> list[Session]:
    """Forwards, backwards, forwards …: whoever comes first does not always come first."""
    return [one for i in range(times) for one in (sessions if i % 2 == 0 else sessions[::-1])]
