"""Steps that compute nothing of use: to see what they take, and to compile what later steps need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from engine.models.model import KVCache, Model
from engine.runner import table_width
from kernels.argmax import argmax
from kernels.attention import AttentionMetadata, plan_attention
from kernels.logprob import top_logprobs
from kernels.mask import TokenMasks, apply_bitmask
from kernels.penalty import SeenTokens, apply_penalties
from kernels.philox import uniform
from kernels.sample import SamplingTensors, sample


@torch.inference_mode()
def dry_run(
    model: Model, cache: KVCache, block_size: int, lengths: Sequence[int], max_context_len: int = 0
) -> Tensor:
    """Runs prompts of these lengths, whose keys and values all go to the null block, over and over, and are
    read from there. Returns hidden states that mean nothing, [T, hidden_size].

    max_context_len: what the host knows of contexts, if that is more than the longest prompt.
    """
    metadata = _nowhere(lengths, block_size, model.device, max_context_len)
    plans = [plan_attention(model.ops, metadata, shape) for shape in model.attention_shapes]
    positions = torch.cat([torch.arange(length) for length in lengths]).to(model.device)
    return model.forward(torch.zeros_like(positions), positions, cache, plans)


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The greatest that steps will have."""

    max_num_seqs: int
    max_num_tokens: int
    """Of a step, all in one prompt."""
    max_model_len: int


@torch.inference_mode()
def compile_steps(model: Model, cache: KVCache, block_size: int, sizes: StepSizes) -> None:
    """Runs prompts and decodes of every size class, and samples in every way.

    Kernels are compiled for ranges of sizes when they are first met, each for a second or so, which is not to
    happen while somebody waits for a step.
    """
    num_tokens = 1
    while num_tokens < sizes.max_num_tokens:
        dry_run(model, cache, block_size, [num_tokens])
        if num_tokens <= sizes.max_num_seqs:
            dry_run(model, cache, block_size, [1] * num_tokens)
        num_tokens *= 2
    hidden = dry_run(model, cache, block_size, [sizes.max_num_tokens])
    dry_run(model, cache, block_size, [1], max_context_len=sizes.max_model_len)
    if sizes.max_num_tokens > 2:
        dry_run(model, cache, block_size, [1, 2])
    for num_rows in (1, 2):
        _sample_in_every_way(model, hidden[:num_rows])


def _sample_in_every_way(model: Model, hidden: Tensor) -> None:
    ops, logits = model.ops, model.logits(hidden)
    zeros = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    uniforms = uniform(ops, zeros, zeros, zeros)
    for filters in (False, True):
        sample(ops, logits, uniforms, sampling_of(len(logits), logits.device, filters=filters))
    for num_top in (0, 1, 20):
        top_logprobs(ops, logits, argmax(ops, logits), num_top)
    words = torch.zeros((1, -(-logits.shape[1] // 32)), dtype=torch.int32, device=logits.device)
    apply_bitmask(ops, logits, TokenMasks(zeros[:1], words))
    ones = torch.ones(1, device=logits.device)
    apply_penalties(ops, logits, SeenTokens(zeros[:1], ones, ones, ones, ones))


def sampling_of(num_rows: int, device: torch.device, *, filters: bool) -> SamplingTensors:
    """Parameters of rows that filter in every way, or in none."""

    def full(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((num_rows,), value, dtype=dtype, device=device)

    if not filters:
        return SamplingTensors(full(1.0), full(0, torch.int64), full(1.0), full(0.0), False, False, False)
    return SamplingTensors(full(1.0), full(50, torch.int64), full(0.9), full(0.01), True, True, True)


def _nowhere(
    lengths: Sequence[int], block_size: int, device: torch.device, max_context_len: int
) -> AttentionMetadata:
    """Prompts whose keys and values all go to the null block, over and over, and are read from there."""
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return AttentionMetadata(
        cu_seqlens_q=bounds.to(device),
        context_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_tables=torch.zeros(
            (len(lengths), table_width(max(lengths), block_size)), dtype=torch.int32, device=device
        ),
        slot_mapping=torch.zeros(sum(lengths), dtype=torch.int64, device=device),
        block_size=block_size,
        max_query_len=max(lengths),
        max_context_len=max(max_context_len, *lengths),
        num_decodes=sum(1 for _ in takewhile(lambda length: length == 1, lengths)),
    )
