"""Sequences in a paged cache, made of random keys and values, and attention over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionShape, LayerCache, attention, plan_attention
from kernels.cpu.paged import as_stored
from kernels.opset import OpSet


@dataclass
class Paged:
    """Sequences in a cache whose free blocks hold NaN, and unused slots something big: each would show."""

    q: Tensor
    cache: LayerCache
    metadata: AttentionMetadata
    shape: AttentionShape
    keys: list[Tensor]
    values: list[Tensor]

    def run(self, ops: OpSet) -> Tensor:
        """Attention of every query, [T, heads, D]."""
        out = torch.full_like(self.q, torch.nan)
        plan = plan_attention(ops, self.metadata, self.shape)
        attention(ops, self.q, as_stored(self.cache) if ops.stores_by_head else self.cache, plan, out)
        return out

    def pick(self, picks: list[tuple[int, int, int]]) -> tuple[Paged, Tensor]:
        """A batch of nothing but (sequence, first query, last query + 1), and their rows in the whole one,
        in which every token of a sequence is a query."""
        bounds = self.metadata.cu_seqlens_q.tolist()
        index = torch.cat([torch.arange(bounds[b] + start, bounds[b] + end) for b, start, end in picks])
        counts = torch.tensor([0] + [end - start for _, start, end in picks])
        metadata = AttentionMetadata(
            cu_seqlens_q=counts.cumsum(0).int(),
            context_lens=torch.tensor([end for _, _, end in picks], dtype=torch.int32),
            block_tables=self.metadata.block_tables[[b for b, _, _ in picks]],
            slot_mapping=self.metadata.slot_mapping[index],
            block_size=self.metadata.block_size,
            max_query_len=max(end - start for _, start, end in picks),
            max_context_len=max(end for _, _, end in picks),
        )
        return replace(self, q=self.q[index], metadata=metadata), index

    def to(self, dtype: torch.dtype) -> Paged:
        """The same, rounded to another dtype; what is big stays finite in it."""
        parts = (self.q, self.cache.keys, self.cache.values)
        q, keys, values = (x.clamp(-6e4, 6e4).to(dtype) for x in parts)
        return replace(self, q=q, cache=LayerCache(keys, values))


def make(lengths: list[tuple[int, int]], shape: AttentionShape, block_size: int = 16, seed: int = 0) -> Paged:
    """One sequence per (queries, context)."""
    gen = torch.Generator().manual_seed(seed)
    width = max(-(-(-(-context // 16) * 16) // block_size) for _, context in lengths)
    num_blocks = 1 + sum(-(-context // block_size) for _, context in lengths)
    free = (torch.randperm(num_blocks - 1, generator=gen) + 1).tolist()
    cache_shape = (num_blocks, block_size, shape.num_kv_heads, shape.head_dim)
    k_cache, v_cache = torch.full(cache_shape, torch.nan), torch.full(cache_shape, torch.nan)
    k_cache[0], v_cache[0] = 0.0, 0.0
    tables = torch.zeros(len(lengths), width, dtype=torch.int32)
    keys, values, slots = [], [], []
    for b, (num_queries, context) in enumerate(lengths):
        blocks = [free.pop() for _ in range(-(-context // block_size))]
        tables[b, : len(blocks)] = torch.tensor(blocks)
        positions = torch.arange(context)
        slot = torch.tensor(blocks)[positions // block_size] * block_size + positions % block_size
        k_cache[blocks], v_cache[blocks] = 1e6, -1e6
        k = torch.randn(context, shape.num_kv_heads, shape.head_dim, generator=gen)
        v = torch.randn(context, shape.num_kv_heads, shape.head_dim, generator=gen)
        k_cache.flatten(0, 1)[slot], v_cache.flatten(0, 1)[slot] = k, v
        keys.append(k)
        values.append(v)
        slots.append(slot[context - num_queries :])
    counts = torch.tensor([0] + [n for n, _ in lengths])
    metadata = AttentionMetadata(
        cu_seqlens_q=counts.cumsum(0).int(),
        context_lens=torch.tensor([context for _, context in lengths], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        block_size=block_size,
        max_query_len=max(num_queries for num_queries, _ in lengths),
        max_context_len=max(context for _, context in lengths),
        num_decodes=sum(1 for _ in takewhile(lambda length: length[0] == 1, lengths)),
    )
    q = torch.randn(int(counts.sum()), shape.num_heads, shape.head_dim, generator=gen)
    return Paged(q, LayerCache(k_cache, v_cache), metadata, shape, keys, values)
