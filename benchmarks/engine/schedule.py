"""Which steps a workload takes at the least, by simulation: decodes first, then chunks of prompts, as the
engine's scheduler fills a step, in a cache that is large enough for all running sequences."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from benchmarks.engine.workloads import Workload

CACHED_BLOCK = 16
"""A shared prefix is reused in whole blocks of this many tokens."""


@dataclass(frozen=True)
class StepLoad:
    """What one step computes."""

    prefill_tokens: int
    prefill_pairs: int
    """Query-key pairs of the prefilled tokens, each with all before it and itself."""
    decode_tokens: int
    context_tokens: int
    """Tokens whose keys and values are read: those of every sequence of the step, once."""
    sampled_rows: int


@dataclass
class _Sequence:
    prompt: int
    outputs_left: int
    computed: int = 0


def simulate(
    workload: Workload, max_num_seqs: int, max_num_batched_tokens: int, *, prefix_cache: bool = True
) -> list[StepLoad]:
    """The steps, first to last. Preemption and steps lost to a full cache are not in it."""
    cached = workload.shared_prefix // CACHED_BLOCK * CACHED_BLOCK if prefix_cache else 0
    waiting = deque(_Sequence(len(job.prompt_token_ids), job.max_tokens) for job in workload.jobs)
    running: list[_Sequence] = []
    prefix_is_known = False
    steps: list[StepLoad] = []
    while waiting or running:
        budget = max_num_batched_tokens
        decodes = [seq for seq in running if seq.computed >= seq.prompt]
        chunks: list[tuple[_Sequence, int]] = []
        budget -= len(decodes)
        for seq in running:
            if seq.computed < seq.prompt and budget > 0:
                chunks.append((seq, min(budget, seq.prompt - seq.computed)))
                budget -= chunks[-1][1]
        while waiting and budget > 0 and len(running) < max_num_seqs:
            if cached and not prefix_is_known and running:
                break  # those behind the first one wait for the prefix that it computes
            seq = waiting.popleft()
            seq.computed = min(cached, seq.prompt - 1) if prefix_is_known else 0
            running.append(seq)
            chunks.append((seq, min(budget, seq.prompt - seq.computed)))
            budget -= chunks[-1][1]
        steps.append(_run(decodes, chunks))
        prefix_is_known = prefix_is_known or any(seq.computed >= cached for seq in running)
        running = [seq for seq in running if seq.outputs_left > 0]
    return steps


def _run(decodes: list[_Sequence], chunks: list[tuple[_Sequence, int]]) -> StepLoad:
    """Moves every sequence on and says what that took."""
    context = pairs = sampled = 0
    for seq in decodes:
        seq.computed += 1
        seq.outputs_left -= 1
        context += seq.computed
        sampled += 1
    for seq, count in chunks:
        start = seq.computed
        seq.computed += count
        context += seq.computed
        pairs += count * start + count * (count + 1) // 2
        if seq.computed == seq.prompt:
            seq.outputs_left -= 1
            sampled += 1
    return StepLoad(
        prefill_tokens=sum(count for _, count in chunks),
        prefill_pairs=pairs,
        decode_tokens=len(decodes),
        context_tokens=context,
        sampled_rows=sampled,
    )
