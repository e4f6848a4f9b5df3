"""Steps that compute nothing of use: to see what they take, and to compile what later steps need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.models.model import KVCache, Model
from engine.runner import table_width
from kernels.attention import AttentionMetadata, plan_attention


@torch.inference_mode()
def dry_run(model: Model, cache: KVCache, block_size: int, lengths: Sequence[int]) -> Tensor:
    """Runs prompts of these lengths, whose keys and values all go to the null block, over and over, and are
    read from there. Returns hidden states that mean nothing, [T, hidden_size]."""
    metadata = _nowhere(lengths, block_size, model.device)
    plans = [plan_attention(model.ops, metadata, shape) for shape in model.attention_shapes]
    positions = torch.cat([torch.arange(length) for length in lengths]).to(model.device)
    return model.forward(torch.zeros_like(positions), positions, cache, plans)


def compile_steps(model: Model, cache: KVCache, block_size: int, sizes: tuple[int, int]) -> None:
    """Runs prompts and decodes of every order of magnitude: kernels are compiled for ranges of sizes when
    they are first met, each for a second or so, which is not to happen while somebody waits for a step.

    sizes: the greatest number of sequences, and of tokens in a step and in a sequence.
    """
    max_num_seqs, max_num_tokens = sizes
    num_tokens = 1
    while num_tokens < max_num_tokens:
        dry_run(model, cache, block_size, [num_tokens])
        if num_tokens <= max_num_seqs:
            dry_run(model, cache, block_size, [1] * num_tokens)
        num_tokens *= 4
    dry_run(model, cache, block_size, [max_num_tokens])


def _nowhere(lengths: Sequence[int], block_size: int, device: torch.device) -> AttentionMetadata:
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
        max_context_len=max(lengths),
    )
