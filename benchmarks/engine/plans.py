"""Which sessions a run has, most important first: what comes last is lost where time runs out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.engine.session import Session

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
PEERS = ("transformers", "generate", "vllm", "llama.cpp")
SLOW_PEERS = ("transformers", "generate")
"""Of the library transformers: continuous batching, and one padded batch."""
DEVICE_WORKLOADS = [
    *("nano-vllm", "small-batch-1", "small-batch-8", "shared-prefix", "prefill-heavy", "decode-heavy"),
]
LIGHT = ["peers", "small-batch-1"]
HEAVY = ["shared-prefix", "prefill-heavy", "decode-heavy"]
"""Of the comparison on processors: a minute each and less, and minutes."""
REDIS_ROWS = 32
ALONE = "alone"
EXTRAS = ("accuracy", "redis", "profile")
"""Systems that are no rows of the table: what else is measured of ours."""


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


def smoke_plan() -> list[Session]:
    """The same on a processor, at sizes that prove no more than that it runs."""
    ours = Session("ours", "tiny", ["tiny", "peers"], "cpu", "fp32", limit_s=60)
    return [ours, replace(ours, system="transformers", workloads=["tiny"])]


def cpu_plan(
    precisions: Sequence[str] = PRECISIONS,
    peers: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    questions: int = 1500,
) -> list[Session]:
    """The comparison on a processor: about an hour on two cores. Those peers are in it that are named.

    All of them on the short workloads; on the long ones ours in 8 bits and in bfloat16, vLLM and llama.cpp
    in 16 bits; then a second shape, and the tiny one. transformers, which takes minutes, has one.
    """
    ours = Session("ours", "qwen3-0.6b-32k", LIGHT, "cpu", "fp32", {"ops": "cpu", **(settings or {})})
    light = [replace(ours, precision=one, limit_s=300) for one in precisions]
    fast = [one for one in light if one.precision in ("int8", "bf16")] or light
    others = [one for peer in peers for one in _peer_sessions(peer, light[0], 400)]
    heavy_peers = [one for one in others if one.label in ("vllm bf16", "llama.cpp F16")]
    heavy = [replace(one, workloads=HEAVY, limit_s=900) for one in (*fast, *heavy_peers)]
    both = [one for one in others if one.system not in SLOW_PEERS]
    second = [replace(one, model="llama-3.2-1b", limit_s=400) for one in (*fast, *both)]
    tiny = [replace(one, model="tiny", workloads=["peers"], limit_s=200) for one in (*light, *both)]
    slow = [replace(one, workloads=["peers"]) for one in others if one.system in SLOW_PEERS]
    return [
        *accuracy_sessions(light, questions),
        *light,
        *both,
        *redis_sessions(light),
        *(replace(one, system="profile", limit_s=200) for one in light),
        *slow,
        *heavy,
        *tiny,
        *second,
    ]


PLANS = {"gpu": gpu_plan, "smoke": smoke_plan, "cpu": cpu_plan}


def chosen_plan(
    model: str,
    workloads: list[str],
    device: str,
    precisions: list[str],
    settings: list[dict[str, Any]],
    peers: list[str],
) -> list[Session]:
    """Our engine in each precision with each of the settings, then each peer in the first precision; on a
    processor vLLM in bf16 and fp32, as either may be the faster, and llama.cpp in its two types.

    peers: `transformers`, `generate`, `vllm`, `vllm=PYTHON` (the interpreter that has it), `llama.cpp=PLACE`.
    """
    ours = [
        Session("ours", model, workloads, device, precision, options)
        for precision in precisions
        for options in settings
    ]
    return ours + [one for peer in peers for one in _peer_sessions(peer, ours[0], ours[0].limit_s)]


def with_extras(sessions: list[Session], wanted: Sequence[str], questions: int) -> list[Session]:
    """wanted: of `EXTRAS`, for each precision of ours: accuracy before all else, the others after it."""
    ours = [one for one in sessions if one.system == "ours"]
    return [
        *(accuracy_sessions(ours, questions) if "accuracy" in wanted else []),
        *sessions,
        *(redis_sessions(ours) if "redis" in wanted else []),
        *(replace(one, system="profile") for one in ours if "profile" in wanted),
    ]


def accuracy_sessions(ours: Sequence[Session], questions: int) -> list[Session]:
    """One for each precision, fp32 first whether it is among them or not: others are compared with it."""
    found = {one.precision: one for one in [replace(ours[0], precision="fp32"), *ours]}
    return [
        replace(
            one,
            system="accuracy",
            workloads=one.workloads[:1],
            options={**one.options, "questions": questions},
            limit_s=400,
        )
        for one in found.values()
    ]


def redis_sessions(ours: Sequence[Session]) -> list[Session]:
    """Of each precision the engine alone and through Redis, with the same settings, in turn: A B B A."""
    found: list[Session] = []
    for one in ours:
        options = {**one.options, "max_num_seqs": REDIS_ROWS}
        alone = replace(one, workloads=one.workloads[:1], options=options, note=ALONE)
        through = replace(alone, system="redis", note="")
        found += [alone, through, through, alone]
    return found


def _peer_sessions(peer: str, like: Session, limit_s: float) -> list[Session]:
    """peer: as the command line names it."""
    name, _, place = peer.partition("=")
    one = replace(like, system=name, options={}, limit_s=limit_s)
    if name == "llama.cpp":
        return [replace(one, program=place, precision=precision) for precision in ("fp16", "int8")]
    one = replace(one, python=place or sys.executable)
    if one.device != "cpu":
        return [one]
    if name == "vllm":
        return [replace(one, precision=precision) for precision in ("bf16", "fp32")]
    # Which has no 8 bits.
    return [replace(one, precision="bf16" if one.precision == "int8" else one.precision)]


def narrowed(sessions: list[Session], model: str | None, workloads: Sequence[str] | None) -> list[Session]:
    """What is of this model and has some of these workloads, with those alone. Accuracy and profiles, which
    are of one model, are of this one instead."""
    found: list[Session] = []
    for one in sessions:
        names = [name for name in one.workloads if workloads is None or name in workloads]
        is_extra = one.system in ("accuracy", "profile")
        if is_extra:
            found.append(replace(one, model=model or one.model))
        elif model in (None, one.model) and names:
            found.append(replace(one, workloads=names))
    return found


def repeated(sessions: list[Session], times: int) -> list[Session]:
    """Forwards, backwards, forwards …: whoever comes first does not always come first. Accuracy and profiles
    are taken once, first and last."""
    first = [one for one in sessions if one.system == "accuracy"]
    last = [one for one in sessions if one.system == "profile"]
    timed = [one for one in sessions if one not in first and one not in last]
    return [*first, *(one for i in range(times) for one in (timed if i % 2 == 0 else timed[::-1])), *last]
