"""transformers' `generate`: all requests in one padded batch, for as many steps as the longest asks for.

What a script does that does not know of continuous batching. Tokens beyond what a request asked for are made
and not counted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.engine.session import Measured, Report, Session, peak_memory
from benchmarks.engine.transformers_peer import make_model
from benchmarks.engine.workloads import Job, Workload


def run(session: Session, folder: Path, workloads: list[Workload], report: Report, out: Path) -> None:
    """A model of random weights, warmed up before the clock starts."""
    start = time.perf_counter()
    model = make_model(session, folder)
    report.startup_s = time.perf_counter() - start
    report.details["version"] = transformers.__version__
    report.details["attention"] = model.config._attn_implementation
    for workload in workloads:
        _generate(model, [Job(job.prompt_token_ids[::-1], 4) for job in workload.jobs[:4]], session.device)
        begin = time.perf_counter()
        _generate(model, workload.jobs, session.device)
        seconds = time.perf_counter() - begin
        report.peak_memory_bytes, report.memory_of = peak_memory(session.device)
        report.measured.append(
            Measured(workload.name, seconds, workload.num_prompt_tokens, workload.num_output_tokens)
        )
        report.save(out)


def _generate(model: Any, jobs: list[Job], device: str) -> None:
    longest = max(len(job.prompt_token_ids) for job in jobs)
    padding = [longest - len(job.prompt_token_ids) for job in jobs]
    rows = [[0] * pad + list(job.prompt_token_ids) for pad, job in zip(padding, jobs, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    steps = max(job.max_tokens for job in jobs)
    output = model.generate(
        input_ids=torch.tensor(rows, device=device),
        attention_mask=torch.tensor(mask, device=device),
        do_sample=False,
        max_new_tokens=steps,
        min_new_tokens=steps,
        pad_token_id=0,
    )
    assert output.shape == (len(jobs), longest + steps), "it ended early"
