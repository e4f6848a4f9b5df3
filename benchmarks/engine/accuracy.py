"""How near a precision of ours comes to our fp32, on the same random weights and on the trained tiny model.

fp32 is compared with the op set `reference` instead, and leaves its tokens and logits in the folder that the
session's option `shared` names, for the other precisions. `gate.py` judges the figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.ours import generate, make_engine, make_request, settings_of
from benchmarks.engine.session import Report, Session
from benchmarks.engine.tiny_questions import questions, share_answered
from benchmarks.engine.workloads import Job, Workload
from engine.engine import Engine
from engine.kv_cache import KVStorage
from engine.memory import kv_dtype
from kernels.attention import AttentionMetadata, plan_attention

JOBS, REFERENCE_JOBS, OUTPUT_TOKENS = 8, 1, 64
"""Of the workload: so many as a precision is compared on, and as the slow reference is, with so many output
tokens each at most."""
OWN_OPTIONS = ("shared", "questions")


@dataclass(frozen=True)
class Observed:
    """What an engine made of some jobs."""

    tokens: list[list[int]]
    """Greedily."""
    logits: Tensor
    """[P, vocab_size]: of all those positions, with somebody's tokens before them."""


def run(session: Session, folder: Path, workloads: list[Workload], report: Report, out: Path) -> None:
    """The figures, as the report's details."""
    shared = Path(session.options["shared"])
    options = {name: value for name, value in session.options.items() if name not in OWN_OPTIONS}
    workload = workloads[0]
    jobs = [replace(job, max_tokens=min(job.max_tokens, OUTPUT_TOKENS)) for job in workload.jobs[:JOBS]]
    ours = replace(session, options={"prefix_cache": False, **options})
    settings = settings_of(ours, folder, workload.longest)
    asked = questions(session.options.get("questions", 1500))
    share = share_answered(asked, session.precision, options.get("ops", "cpu"))
    if session.precision == "fp32":
        found = observe(settings, jobs, None)
        torch.save((found, share), shared / f"{session.model}.pt")
        few = jobs[:REFERENCE_JOBS]
        base = observe(settings | {"ops": "reference"}, few, found.tokens)
        found = Observed(found.tokens[:REFERENCE_JOBS], found.logits[: len(base.logits)])
        base_share = share_answered(asked, "fp32", "reference")
    else:
        path = shared / f"{session.model}.pt"
        if not path.is_file():
            raise RuntimeError("there is nothing of fp32 to compare with")
        base, base_share = torch.load(path, weights_only=False)
        found = observe(settings, jobs, base.tokens)
    report.details = {
        **compare(found, base),
        "questions": len(asked),
        "task_accuracy": share,
        "task_accuracy_base": base_share,
        "base": "reference" if session.precision == "fp32" else "fp32",
    }
    report.save(out)


def observe(settings: dict[str, Any], jobs: list[Job], forced: list[list[int]] | None) -> Observed:
    """forced: the tokens with which logits are computed; None: its own."""
    engine = make_engine(settings)
    tokens, _ = generate(engine, [make_request(str(i), job, 0.0) for i, job in enumerate(jobs)])
    own = [tokens[str(i)] for i in range(len(jobs))]
    pairs = zip(jobs, forced or own, strict=False)
    return Observed(own, torch.cat([logits_after(engine, job.prompt_token_ids, out) for job, out in pairs]))


@torch.inference_mode()
def logits_after(engine: Engine, prompt: list[int], output: list[int]) -> Tensor:
    """[len(output), vocab_size] float32: what was known before each output token was chosen."""
    model, block_size = engine.runner.model, engine.sizes.block_size
    token_ids = torch.tensor(prompt + output[:-1])
    count = len(token_ids)
    num_blocks = -(-count // 16 * 16 // block_size) + 1
    cache = KVStorage(model, num_blocks, block_size, kv_dtype(engine.config)).layers
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32),
        context_lens=torch.tensor([count], dtype=torch.int32),
        block_tables=torch.arange(1, num_blocks + 1, dtype=torch.int32)[None],
        slot_mapping=torch.arange(count) + block_size,
        block_size=block_size,
        max_query_len=count,
        max_context_len=count,
    )
    plans = tuple(plan_attention(model.ops, metadata, shape) for shape in model.attention_shapes)
    hidden = model.forward(token_ids, torch.arange(count), cache, plans)
    return model.logits(hidden[len(prompt) - 1 :].contiguous())


def compare(found: Observed, base: Observed) -> dict[str, Any]:
    """Shares of tokens that agree, free-running and with the same tokens before them; the error of the logits
    as a share of their spread: the root mean square of the difference over the base's deviation, by position,
    the mean of them and the worst."""
    pairs = [
        one == other
        for own, theirs in zip(found.tokens, base.tokens, strict=False)
        for one, other in zip(own, theirs, strict=True)
    ]
    error = (found.logits - base.logits).square().mean(1).sqrt() / base.logits.std(1)
    agreed = found.logits.argmax(1) == base.logits.argmax(1)
    return {
        "positions": len(agreed),
        "forced_agreement": agreed.float().mean().item(),
        "free_agreement": sum(pairs) / len(pairs),
        "logit_error": error.mean().item(),
        "worst_logit_error": error.max().item(),
    }
