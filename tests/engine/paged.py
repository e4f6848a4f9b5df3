"""Running a model without an engine: greedily, its prompts cut into chunks, mixed with decodes of other rows.

What the scheduler does by policy, this does by chance, so that a model's own errors show here first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.device import resolve
from engine.models.families import spec_of
from engine.models.folder import read_config
from engine.models.load import load_decoder
from engine.models.model import KVCache, Model
from kernels.attention import GREATEST, AttentionMetadata, LayerCache, plan_attention

BLOCK_SIZE = 8


@dataclass
class Row:
    """One sequence."""

    table: list[int]
    token_ids: list[int]
    num_computed: int = 0
    output: list[int] = field(default_factory=list)


def load(folder: Path, **settings: Any) -> Model:
    """The folder's model, without a cache or a scheduler."""
    config = resolve(EngineConfig(model=str(folder), num_threads=1, **settings))
    spec = spec_of(read_config(folder))
    return load_decoder(folder, spec, config, spec.max_position_embeddings, lambda phase: None)


def new_cache(model: Model, num_blocks: int, dtype: torch.dtype | None = None) -> KVCache:
    """Zeros, as the runner has them, by default of the activations' type."""
    shape = model.attention_shapes[0]
    size = (num_blocks, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
    scaled = (torch.zeros(size[:-1]) for _ in range(2 * model.num_layers))
    return [
        LayerCache(
            *(torch.zeros(size, dtype=dtype or model.dtype) for _ in range(2)),
            *((next(scaled), next(scaled)) if dtype in GREATEST else ()),
        )
        for _ in range(model.num_layers)
    ]


def step(model: Model, cache: KVCache, rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
    """Computes `counts` more tokens of each row. Returns the logits of all of them, [T, vocab_size]."""
    ends = [row.num_computed + count for row, count in zip(rows, counts, strict=True)]
    width = -(-max(ends) // 16) * 16 // BLOCK_SIZE
    positions = [list(range(row.num_computed, end)) for row, end in zip(rows, ends, strict=True)]
    slots = [
        row.table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
        for row, places in zip(rows, positions, strict=True)
        for p in places
    ]
    bounds = [0]
    for count in counts:
        bounds.append(bounds[-1] + count)
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor(bounds, dtype=torch.int32),
        context_lens=torch.tensor(ends, dtype=torch.int32),
        block_tables=torch.tensor([(row.table + [0] * width)[:width] for row in rows], dtype=torch.int32),
        slot_mapping=torch.tensor(slots),
        block_size=BLOCK_SIZE,
        max_query_len=max(counts),
        max_context_len=max(ends),
    )
    token_ids = [row.token_ids[p] for row, places in zip(rows, positions, strict=True) for p in places]
    plans = [plan_attention(model.ops, metadata, shape) for shape in model.attention_shapes]
    hidden = model.forward(
        torch.tensor(token_ids), torch.tensor([p for places in positions for p in places]), cache, plans
    )
    for row, end in zip(rows, ends, strict=True):
        row.num_computed = end
    return model.logits(hidden)


def new_rows(prompts: Sequence[list[int]], max_tokens: int) -> list[Row]:
    """Rows whose blocks lie scattered over the cache; block 0 belongs to nobody."""
    sizes = [-(-(len(prompt) + max_tokens) // BLOCK_SIZE) for prompt in prompts]
    blocks = list(range(1, sum(sizes) + 1))
    random.Random(0).shuffle(blocks)
    rows: list[Row] = []
    for prompt, size in zip(prompts, sizes, strict=True):
        rows.append(Row(blocks[:size], list(prompt)))
        del blocks[:size]
    return rows


@torch.inference_mode()
def greedy_tokens(
    model: Model, prompts: Sequence[list[int]], max_tokens: int, *, longest_chunk: int = 10**6
) -> list[list[int]]:
    """Each prompt's next tokens. With a `longest_chunk`, every step runs some of the rows, by chance."""
    rows = new_rows(prompts, max_tokens)
    cache = new_cache(model, 1 + sum(len(row.table) for row in rows))
    rng = random.Random(1)
    chunked = longest_chunk < 10**6
    while running := [row for row in rows if len(row.output) < max_tokens]:
        chosen = [row for row in running if not chunked or rng.random() < 0.6] or running[:1]
        counts = [len(row.token_ids) - row.num_computed for row in chosen]
        counts = [min(count, rng.randint(1, longest_chunk) if chunked else count) for count in counts]
        logits = step(model, cache, chosen, counts)
        end = 0
        for row, count in zip(chosen, counts, strict=True):
            end += count
            if row.num_computed == len(row.token_ids):
                token = int(logits[end - 1].argmax())
                row.token_ids.append(token)
                row.output.append(token)
    return [row.output for row in rows]


@torch.inference_mode()
def all_logits(model: Model, token_ids: list[int]) -> Tensor:
    """The logits after every token, [T, vocab_size]."""
    (row,) = new_rows([token_ids], 0)
    return step(model, new_cache(model, 1 + len(row.table)), [row], [len(token_ids)])
