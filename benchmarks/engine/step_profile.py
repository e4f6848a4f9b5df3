"""Where a decode step of 32 sequences spends its time, and how near its parts come to what they reach alone.

Steps are replayed as they are in use, with a clock between the operations of a recording, and around those
that are not recorded. Alone, the step's linear layers run one after the other on the same weights and as many
rows, so that their weights come from as far away as in the step. Attention's keys and values are compared
with the rate at which this process reads memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.engine.op_timer import OpTimer, StepTimes
from benchmarks.engine.ours import make_engine, make_request, settings_of
from benchmarks.engine.session import Report, Session
from benchmarks.engine.shapes import SHAPES, ModelShape
from benchmarks.engine.workloads import Job, Workload
from benchmarks.kernels.ceilings import measure_ceilings
from engine.engine import Engine
from kernels.opset import OpSet

ROWS, CONTEXT, STEPS = 32, 200, 24
TOP = 6
TARGETS = {"gemm_of_alone": 0.85, "kv_of_read": 0.6, "rest_share": 0.08}
"""At least, at least, at most."""


def run(session: Session, folder: Path, workloads: list[Workload], report: Report, out: Path) -> None:
    """The profile, as the report's details. The workloads don't matter."""
    shape = SHAPES[session.model]
    context = min(CONTEXT, shape.max_position_embeddings - 4 * STEPS)
    settings = settings_of(session, folder, context + 4 * STEPS) | {"max_num_seqs": ROWS}
    engine = make_engine(settings)
    untimed_s, steps = profile(engine, shape, context)
    ops = engine.runner.model.ops
    cpu = torch.device("cpu")
    rates = {
        "alone_s": linears_alone(ops, steps[0], STEPS),
        "read_bytes_per_s": measure_ceilings(cpu, torch.float32).read_bytes_per_s,
    }
    element_bytes = engine.runner.cache[0].keys.element_size()
    report.details = {
        "rows": ROWS,
        "context": context,
        "threads": torch.get_num_threads(),
        "untimed_step_ms": untimed_s * 1e3,
        **summarize(steps, shape.kv_bytes_per_token(element_bytes), **rates),
    }
    report.save(out)


def profile(engine: Engine, shape: ModelShape, context: int) -> tuple[float, list[StepTimes]]:
    """Seconds of a step without clocks, and steps with them, in turn. All rows decode."""
    rng = Random(0)
    for i in range(ROWS):
        prompt = [rng.randrange(shape.vocab_size) for _ in range(context - STEPS)]
        engine.add([make_request(str(i), Job(prompt, 4 * STEPS), 0.0)], last=True)
    while engine.scheduler.num_waiting:
        engine.step()
    for _ in range(4):  # the last chunks of prompts
        engine.step()
    runner: Any = engine.runner
    timer, recording = OpTimer(), runner.recording
    # A replayed step calls no operation that could be seen: which there are, an eager one tells.
    runner.recording = None
    eager = _timed_step(engine, timer)
    runner.recording = recording
    untimed: list[float] = []
    steps: list[StepTimes] = []
    for i in range(1, STEPS + 1):
        start = time.perf_counter()
        engine.step()
        untimed.append(time.perf_counter() - start)
        step, contexts = _timed_step(engine, timer), eager.contexts + 2 * i * ROWS
        steps.append(replace(step, linear_calls=eager.linear_calls, contexts=contexts))
    return sum(faster_half(untimed)) / len(faster_half(untimed)), steps


def _timed_step(engine: Engine, timer: OpTimer) -> StepTimes:
    runner: Any = engine.runner
    plain = runner.model.ops
    runner.model.ops = runner.sampler._ops = timer.wrap(plain)
    if runner.recording is not None:
        runner.recording.seconds = timer.seconds
    try:
        return timer.step(engine.step)
    finally:
        runner.model.ops = runner.sampler._ops = plain
        if runner.recording is not None:
            runner.recording.seconds = None


@torch.inference_mode()
def linears_alone(ops: OpSet, step: StepTimes, times: int) -> float:
    """Seconds that the step's linear layers take with nothing between them."""
    dtype = ops.computes_in
    inputs = {
        (rows, weight.in_features): torch.randn(rows, weight.in_features, dtype=dtype or weight.dtype)
        for rows, weight in step.linear_calls
    }
    taken: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        for rows, weight in step.linear_calls:
            ops.linear(inputs[rows, weight.in_features], weight)
        taken.append(time.perf_counter() - start)
    return sum(faster_half(taken)) / len(faster_half(taken))


def summarize(
    steps: Sequence[StepTimes], kv_bytes_per_token: int, *, alone_s: float, read_bytes_per_s: float
) -> dict[str, Any]:
    """Means of the faster half of the steps, so that parts add up to the whole."""
    chosen = sorted(steps, key=lambda step: step.step_s)[: -(-len(steps) // 2)]
    count = len(chosen)
    step_s, gemm_s, attention_s = (
        sum(getattr(step, name) for step in chosen) / count for name in ("step_s", "gemm_s", "attention_s")
    )
    kv_rate = sum(step.contexts for step in chosen) / count * kv_bytes_per_token / attention_s
    flops = sum(2 * rows * one.in_features * one.out_features for rows, one in chosen[0].linear_calls)
    ops_ms = {
        name: sum(step.ops_s.get(name, 0.0) for step in chosen) / count * 1e3 for name in chosen[0].ops_s
    }
    rest = {name: ms for name, ms in ops_ms.items() if name not in ("linear", "moe", "attention")}
    rest["around the operations"] = step_s * 1e3 - sum(ops_ms.values())
    return {
        "step_ms": step_s * 1e3,
        "gemm_share": gemm_s / step_s,
        "attention_share": attention_s / step_s,
        "rest_share": (step_s - gemm_s - attention_s) / step_s,
        "rest_ms": dict(sorted(rest.items(), key=lambda item: -item[1])),
        "gemm_flops_per_s": flops / gemm_s,
        "alone_flops_per_s": flops / alone_s,
        "gemm_of_alone": alone_s / gemm_s,
        "kv_bytes_per_s": kv_rate,
        "read_bytes_per_s": read_bytes_per_s,
        "kv_of_read": kv_rate / read_bytes_per_s,
    }


def faster_half(taken: Sequence[float]) -> list[float]:
    """What other work on the machine has disturbed least."""
    return sorted(taken)[: -(-len(taken) // 2)]


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Of profiles with their `label`, for a person."""
    head = (
        f"{'step at batch 32':<24} {'ms':>8} {'GEMM':>7} {'attn':>7} {'rest':>7} {'GFLOP/s':>8} {'alone':>8} "
        f"{'share':>7} {'KV GB/s':>8} {'read':>6} {'share':>7}"
    )
    found = [head]
    for row in rows:
        if "error" in row:
            found.append(f"{row['label']:<24} {row['error']}")
            continue
        found.append(
            f"{row['label']:<24} {row['step_ms']:8.1f} {row['gemm_share']:7.1%} "
            f"{row['attention_share']:7.1%} {row['rest_share']:7.1%} {row['gemm_flops_per_s'] / 1e9:8.0f} "
            f"{row['alone_flops_per_s'] / 1e9:8.0f} {row['gemm_of_alone']:7.1%} "
            f"{row['kv_bytes_per_s'] / 1e9:8.1f} {row['read_bytes_per_s'] / 1e9:6.1f} "
            f"{row['kv_of_read']:7.1%}"
        )
        top = list(row["rest_ms"].items())[:TOP]
        found.append("  rest, ms: " + ", ".join(f"{name} {ms:.2f}" for name, ms in top))
    return found
