"""Paged attention: the cpu op set against its twin, and the twin against plain attention."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionShape, attention, plan_attention
from kernels.cpu.attention import CpuPlan
from kernels.cpu.tiles import QUERY_TILE
from kernels.opset import OpSet


@dataclass
class Paged:
    """Sequences in a cache whose free blocks hold NaN, and unused slots something big: each would show."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    metadata: AttentionMetadata
    shape: AttentionShape
    keys: list[Tensor]
    values: list[Tensor]

    def run(self, ops: OpSet) -> Tensor:
        out = torch.full(self.q.shape, torch.nan)
        plan = plan_attention(ops, self.metadata, self.shape)
        attention(ops, self.q, self.k_cache, self.v_cache, plan, out)
        return out


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
    )
    q = torch.randn(int(counts.sum()), shape.num_heads, shape.head_dim, generator=gen)
    return Paged(q, k_cache, v_cache, metadata, shape, keys, values)


MIXED = [(1, 1), (1, 40), (5, 5), (1, 333), (63, 63), (1, 16), (7, 100), (1, 17), (2, 513), (1, 700)]
SHAPES = [
    AttentionShape(4, 2, 32, 32**-0.5),
    AttentionShape(3, 3, 20, 20**-0.5),
    AttentionShape(8, 1, 64, 64**-0.5),
    AttentionShape(1, 1, 2, 2**-0.5),
]


@pytest.mark.parametrize("block_size", [1, 8, 16, 24])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixed_batch_equals_reference(
    shape: AttentionShape, block_size: int, cpu: OpSet, reference: OpSet
) -> None:
    paged = make(MIXED, shape, block_size)
    got = paged.run(cpu)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, paged.run(reference), rtol=1e-4, atol=1e-5)


def test_reference_equals_attention_without_pages(reference: OpSet) -> None:
    shape = AttentionShape(4, 2, 16, 16**-0.5)
    paged = make(MIXED, shape)
    got = paged.run(reference)
    start = 0
    for (num_queries, context), keys, values in zip(MIXED, paged.keys, paged.values, strict=True):
        mask = torch.ones(num_queries, context).tril(context - num_queries).bool()
        expected = torch.nn.functional.scaled_dot_product_attention(
            paged.q[start : start + num_queries].transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=mask,
            enable_gqa=True,
        )
        torch.testing.assert_close(got[start : start + num_queries], expected[0].transpose(0, 1))
        start += num_queries


def test_the_plan_of_a_chunk_far_into_a_context_is_small(cpu: OpSet) -> None:
    """A bias over the whole context would be 512 · 4 · 16384 floats, 128 MiB."""
    shape = AttentionShape(8, 2, 4, 4**-0.5)
    plan = plan_attention(cpu, make([(512, 16_384)], shape).metadata, shape)
    assert isinstance(plan, CpuPlan)
    assert (
        sum(group.head_bias.numel() + group.tail_bias.numel() for group in plan.groups)
        < 512 * 4 * 2 * QUERY_TILE
    )


def test_long_prompt_is_cut_into_tiles(cpu: OpSet, reference: OpSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.cpu.tiles.MAX_SCORES", 1 << 12)
    monkeypatch.setattr("kernels.cpu.tiles.MAX_GATHER", 1 << 12)
    paged = make(MIXED, AttentionShape(4, 2, 8, 8**-0.5))
    torch.testing.assert_close(paged.run(cpu), paged.run(reference), rtol=1e-4, atol=1e-5)
