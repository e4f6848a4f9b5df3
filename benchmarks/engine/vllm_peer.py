"""vLLM in this process, where this interpreter has it: `--peer vllm` or `--peer vllm=PYTHON`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.engine.session import Measured, Report, Session, peak_memory
from benchmarks.engine.workloads import Job, Workload

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def run(session: Session, folder: Path, workloads: list[Workload], report: Report, out: Path) -> None:
    """One engine for all workloads, with its own defaults but for the window and the rows of a batch."""
    from vllm import LLM, __version__  # type: ignore[import-not-found]  # a peer: there on few machines

    start = time.perf_counter()
    llm = LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=DTYPES[session.precision],
        max_model_len=-(-max(workload.longest for workload in workloads) // 16) * 16,
        max_num_seqs=256 if session.device == "cuda" else 64,
        seed=0,
    )
    report.startup_s = time.perf_counter() - start
    report.details["version"] = __version__
    for workload in workloads:
        _generate(llm, [Job(job.prompt_token_ids[::-1], 4) for job in workload.jobs[:4]], 0.0)
        begin = time.perf_counter()
        num_tokens = _generate(llm, workload.jobs, workload.temperature)
        seconds = time.perf_counter() - begin
        if num_tokens != workload.num_output_tokens:
            raise RuntimeError(f"{num_tokens} output tokens, expected {workload.num_output_tokens}")
        report.measured.append(Measured(workload.name, seconds, workload.num_prompt_tokens, num_tokens))
        report.peak_memory_bytes, report.memory_of = peak_memory(session.device)
        report.save(out)


def _generate(llm: Any, jobs: list[Job], temperature: float) -> int:
    """Output tokens in all."""
    from vllm import SamplingParams  # type: ignore[import-not-found]  # a peer: there on few machines

    params = [
        SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=job.max_tokens, detokenize=False)
        for job in jobs
    ]
    prompts = [{"prompt_token_ids": job.prompt_token_ids} for job in jobs]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)
