"""Our engine in this process: the one file that knows its settings and its steps."""

from __future__ import annotations

import statistics
import time
import zlib
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.engine.device_profile import profile_steps
from benchmarks.engine.session import Measured, Report, Session, peak_memory
from benchmarks.engine.shapes import SHAPES, WEIGHT_BYTES, cache_bytes
from benchmarks.engine.workloads import Job, Workload
from engine.config import EngineConfig
from engine.engine import Engine
from engine.request import Request, RequestParams

CPU_KV_BYTES = 4 * 1024**3
WARM_UP_TOKENS = 4
PROFILED_STEPS = 20


def settings_of(session: Session, folder: Path, longest: int) -> dict[str, Any]:
    """Settings of EngineConfig. On a device the limits are those of nano-vllm's bench, so that all of its
    sequences run at once and prompts come in large chunks; on a processor as many run as vLLM is given."""
    on_device = session.device == "cuda"
    limits = {"max_num_seqs": 256, "max_num_batched_tokens": 16384}
    small = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "kv_cache_bytes": CPU_KV_BYTES}
    return {
        "model": str(folder),
        "load_format": "dummy",
        "precision": session.precision,
        "device": session.device,
        "max_model_len": -(-longest // 16) * 16,
        **(limits if on_device else small),
        **session.options,
    }


def run(session: Session, folder: Path, workloads: list[Workload], report: Report, out: Path) -> None:
    """Loads, warms up, and runs the workloads one after the other, each on a cache that others have used."""
    settings = settings_of(session, folder, max(workload.longest for workload in workloads))
    start = time.perf_counter()
    engine = make_engine(settings)
    report.startup_s = time.perf_counter() - start
    report.details = {
        "settings": {name: value for name, value in settings.items() if name != "model"},
        "ops": engine.runner.model.ops.name,
        "device": engine.config.device,
        "num_blocks": engine.sizes.num_blocks,
        "threads": torch.get_num_threads(),
        "least_bytes": _least_bytes(session, engine),
    }
    for workload in workloads:
        _warm_up(engine, workload, 32 if session.device == "cuda" else 2)
        measured = measure(engine, workload)
        if session.device == "cuda":
            _add_profile(engine, workload, measured)
        report.measured.append(measured)
        report.peak_memory_bytes, report.memory_of = peak_memory(session.device)
        report.save(out)


def make_engine(settings: dict[str, Any]) -> Engine:
    """By way of JSON, which checks names and values: what a flag says may be anything."""
    return Engine(msgspec.json.decode(msgspec.json.encode(settings), type=EngineConfig))


def measure(engine: Engine, workload: Workload) -> Measured:
    """All jobs at once, from the first step to the last token."""
    requests = [make_request(str(i), job, workload.temperature) for i, job in enumerate(workload.jobs)]
    begin = time.perf_counter()
    tokens, times = generate(engine, requests)
    seconds = time.perf_counter() - begin
    num_tokens = sum(map(len, tokens.values()))
    if num_tokens != workload.num_output_tokens:
        raise RuntimeError(f"{num_tokens} output tokens, expected {workload.num_output_tokens}")
    ordered = sorted(times)
    return Measured(
        workload=workload.name,
        seconds=seconds,
        prompt_tokens=workload.num_prompt_tokens,
        output_tokens=num_tokens,
        steps=len(times),
        step_ms={
            "p50": statistics.median(times) * 1e3,
            "p99": ordered[len(ordered) * 99 // 100] * 1e3,
            "worst": ordered[-1] * 1e3,
        },
        host_gap=getattr(engine.runner, "host_gap", None),
    )


def generate(engine: Engine, requests: list[Request]) -> tuple[dict[str, list[int]], list[float]]:
    """Output tokens by request, and the seconds of each step. Raises RuntimeError where a request fails."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    times: list[float] = []
    engine.add(requests, last=True)
    while engine.has_work:
        start = time.perf_counter()
        for output in engine.step():
            if output.error is not None:
                raise RuntimeError(f"request {output.request_id}: {output.error}")
            tokens[output.request_id] += output.token_ids
        times.append(time.perf_counter() - start)
    return tokens, times


def make_request(request_id: str, job: Job, temperature: float) -> Request:
    """With the end token ignored."""
    params = RequestParams(
        max_tokens=job.max_tokens,
        seed=zlib.crc32(request_id.encode()),
        temperature=temperature,
        ignore_eos=True,
    )
    return Request(request_id=request_id, prompt_token_ids=job.prompt_token_ids, params=params)


def _least_bytes(session: Session, engine: Engine) -> int:
    """Of the weights, each once, and of the whole KV cache."""
    sizes, shape = engine.sizes, SHAPES[session.model]
    per_token = shape.kv_bytes_per_token(cache_bytes(session.precision, session.kv_cache_dtype))
    cache = sizes.num_blocks * sizes.block_size * per_token
    return shape.num_params * WEIGHT_BYTES[session.precision] + cache


def _warm_up(engine: Engine, workload: Workload, count: int) -> None:
    """Some of the workload's shapes with other tokens, so that nothing of it is in the prefix cache."""
    jobs = [
        Job([(i + 1) % engine.vocab_size for i in job.prompt_token_ids], WARM_UP_TOKENS)
        for job in workload.jobs[:count]
    ]
    engine.add(make_request(f"warm-up {i}", job, workload.temperature) for i, job in enumerate(jobs))
    while engine.has_work:
        engine.step()


def _add_profile(engine: Engine, workload: Workload, measured: Measured) -> None:
    """What the device does in some decode steps of a full batch, outside of what was timed."""
    jobs = [Job(job.prompt_token_ids, 4 * PROFILED_STEPS) for job in workload.jobs]
    engine.add(make_request(f"profile {i}", job, workload.temperature) for i, job in enumerate(jobs))
    while engine.has_work and engine.scheduler.num_waiting:
        engine.step()
    for _ in range(4):  # the last chunks of prompts
        engine.step()
    measured.profile = profile_steps(engine.step, PROFILED_STEPS)
    if measured.host_gap is None:
        measured.host_gap = measured.profile.get("idle_share")
    while engine.has_work:
        engine.step()
