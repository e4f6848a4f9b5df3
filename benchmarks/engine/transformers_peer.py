"""transformers' continuous batching, the engine behind `generate_batch`, in this process.

Its manager is used directly, as `generate_batch` gives every request the same number of output tokens. The
best attention that it finds is used: FlashAttention where that is installed, else PyTorch's own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.engine.session import Measured, Report, Session, peak_memory
from benchmarks.engine.workloads import Job, Workload

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_LIMITS = {"num_blocks": 64, "max_batch_tokens": 1024}
"""Where there is no device memory to derive them from."""


def run(session: Session, folder: Path, workloads: list[Workload], report: Report, out: Path) -> None:
    """A model of random weights, then a manager for each workload, warmed up before the clock starts."""
    start = time.perf_counter()
    model = make_model(session, folder)
    report.startup_s = time.perf_counter() - start
    for workload in workloads:
        with _manager(model, workload, session.device) as manager:
            _run_all(manager, [Job(job.prompt_token_ids[::-1], 4) for job in workload.jobs[:4]])
            begin = time.perf_counter()
            num_tokens = _run_all(manager, workload.jobs)
            seconds = time.perf_counter() - begin
            report.details["version"] = transformers.__version__
            report.details["attention"] = model.config._attn_implementation
            report.peak_memory_bytes, report.memory_of = peak_memory(session.device)
        if num_tokens != workload.num_output_tokens:
            raise RuntimeError(f"{num_tokens} output tokens, expected {workload.num_output_tokens}")
        report.measured.append(
            Measured(workload.name, seconds, workload.num_prompt_tokens, workload.num_output_tokens)
        )
        report.save(out)


def make_model(session: Session, folder: Path) -> Any:
    """The folder's model, with random weights in the session's precision."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device(session.device):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPES[session.precision])
    return model.eval()


def _manager(model: Any, workload: Workload, device: str) -> Any:
    limits = {} if device == "cuda" else CPU_LIMITS
    sampled = {"temperature": workload.temperature} if workload.temperature else {}
    return model.continuous_batching_context_manager(
        generation_config=transformers.GenerationConfig(
            do_sample=bool(sampled),
            max_new_tokens=max(job.max_tokens for job in workload.jobs),
            eos_token_id=-1,
            pad_token_id=0,
            **sampled,
        ),
        continuous_batching_config=transformers.ContinuousBatchingConfig(**limits),
        timeout=30,
    )


def _run_all(manager: Any, jobs: list[Job]) -> int:
    """Output tokens in all."""
    for job in jobs:
        manager.add_request(job.prompt_token_ids, max_new_tokens=job.max_tokens, eos_token_id=-1)
    left, num_tokens = len(jobs), 0
    while left:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("transformers' generation thread has ended")
            continue
        if result.error is not None:
            raise RuntimeError(f"transformers: {result.error}")
        if result.is_finished():
            num_tokens += len(result.generated_tokens)
            left -= 1
    return num_tokens
