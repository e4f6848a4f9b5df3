"""The norm of each head, rotation and the store of keys and values in one operation, and each alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels import qkv as op
from kernels.attention import AttentionMetadata, AttentionShape, LayerCache, store_kv
from kernels.checks import FLOATS
from kernels.cpu.paged import by_token
from kernels.opset import OpSet
from kernels.qkv import HeadNorm, Turn
from kernels.reference import ReferencePlan

BLOCK_SIZE = 4


@dataclass(frozen=True)
class Case:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    """0: no rotation."""
    has_norm: bool
    num_tokens: int = 5


CASES = [
    Case(4, 2, 64, 64, True),
    Case(7, 1, 80, 32, True),
    Case(3, 3, 20, 20, False),
    Case(2, 2, 63, 62, True),
    Case(16, 8, 128, 128, True, num_tokens=33),
    Case(4, 4, 48, 2, False),
    Case(5, 1, 36, 0, False),
    Case(6, 2, 64, 0, True, num_tokens=1),
]
"""Pairwise: heads, head size, how much of it turns, norm."""


@dataclass(frozen=True)
class Inputs:
    qkv: Tensor
    norm: HeadNorm | None
    turn: Turn | None
    plan: ReferencePlan

    def run(self, ops: OpSet, cache_dtype: torch.dtype) -> tuple[Tensor, LayerCache]:
        """The queries, and a cache that held NaN before."""
        shape = self.plan.shape
        num_blocks = 2 + int(self.plan.metadata.slot_mapping.max()) // BLOCK_SIZE
        size = (num_blocks, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
        cache = LayerCache(*(torch.full(size, torch.nan, dtype=cache_dtype) for _ in range(2)))
        queries = op.rotate_and_store(ops, self.qkv, self.norm, self.turn, self.plan, cache)
        return queries, by_token(cache) if ops.stores_by_head else cache

    def pick(self, rows: slice) -> Inputs:
        """The same of some tokens, which keep their slots."""
        turn = self.turn and Turn(self.turn.cos[rows], self.turn.sin[rows])
        slots = self.plan.metadata.slot_mapping[rows]
        return Inputs(self.qkv[rows], self.norm, turn, plan_of(slots, self.plan.shape))


def plan_of(slots: Tensor, shape: AttentionShape) -> ReferencePlan:
    num_tokens = slots.shape[0]
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, num_tokens], dtype=torch.int32),
        context_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        slot_mapping=slots,
        block_size=BLOCK_SIZE,
        max_query_len=num_tokens,
        max_context_len=num_tokens,
    )
    return ReferencePlan(metadata, shape)


def inputs(case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
    """Tokens go to slots all over the cache."""
    gen = torch.Generator().manual_seed(case.num_heads + case.head_dim)
    num_turned = case.num_heads + case.num_kv_heads
    width = (num_turned + case.num_kv_heads) * case.head_dim
    qkv = torch.randn(case.num_tokens, width, generator=gen) * 3
    angles = torch.randn(case.num_tokens, case.rotary_dim // 2, generator=gen) * 10
    slots = torch.randperm(case.num_tokens + BLOCK_SIZE, generator=gen)[: case.num_tokens]
    shape = AttentionShape(case.num_heads, case.num_kv_heads, case.head_dim, 1.0)
    norm = HeadNorm(torch.randn(num_turned, case.head_dim, generator=gen), 1e-6)
    return Inputs(
        qkv=qkv.to(dtype),
        norm=norm if case.has_norm else None,
        turn=Turn(angles.cos(), angles.sin()) if case.rotary_dim else None,
        plan=plan_of(slots, shape),
    )


@pytest.mark.parametrize("cache_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_the_reference(case: Case, cache_dtype: torch.dtype, cpu: OpSet, reference: OpSet) -> None:
    made = inputs(case)
    before = made.qkv.clone()
    queries, cache = made.run(cpu, cache_dtype)
    assert torch.equal(made.qkv, before), "the input was written to"
    assert queries.is_contiguous()
    expected, exact = made.run(reference, torch.float32)
    torch.testing.assert_close(queries, expected)
    rounded = LayerCache(exact.keys.to(cache_dtype), exact.values.to(cache_dtype))
    torch.testing.assert_close(cache.keys, rounded.keys, equal_nan=True)  # NaN: nobody's slots
    torch.testing.assert_close(cache.values, rounded.values, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, cpu: OpSet, reference: OpSet) -> None:
    made = inputs(CASES[1], dtype)
    (queries, cache), (expected, other) = made.run(cpu, dtype), made.run(reference, dtype)
    assert queries.dtype == dtype
    torch.testing.assert_close(queries, expected)
    torch.testing.assert_close(cache.keys, other.keys, equal_nan=True)
    torch.testing.assert_close(cache.values, other.values, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_a_token_is_the_same_whatever_is_beside_it(case: Case, num_threads: int, cpu: OpSet) -> None:
    whole = inputs(case)
    queries, cache = whole.run(cpu, torch.bfloat16)
    keys, values = cache.keys.flatten(0, 1), cache.values.flatten(0, 1)
    torch.set_num_threads(num_threads)
    whole.qkv[1] = torch.nan
    for rows in (slice(0, 1), slice(0, case.num_tokens), slice(2, 5), slice(case.num_tokens - 1, None)):
        part = whole.pick(rows)
        got, stored = part.run(cpu, torch.bfloat16)
        clean = part.qkv.isfinite().all(1)
        assert torch.equal(got[clean], queries[rows][clean])
        slots = part.plan.metadata.slot_mapping
        for mine, before in ((stored.keys, keys), (stored.values, values)):
            found = mine.flatten(0, 1)[slots]
            assert torch.equal(found[clean], before[slots][clean])
            assert found[~clean].isnan().all()
        assert got[~clean].isnan().all()


@pytest.mark.parametrize("cache_dtype", FLOATS, ids=str)
def test_store_kv_rounds_to_the_nearest(cache_dtype: torch.dtype, cpu: OpSet) -> None:
    gen = torch.Generator().manual_seed(0)
    keys, values = torch.randn(3, 2, 24, generator=gen), torch.randn(3, 5, 24, generator=gen)[:, 1:3] * 1e-6
    keys[1, 0, 3], keys[2, 1, 4], keys[0, 0, 0] = torch.inf, -torch.inf, torch.nan
    cache = LayerCache(*(torch.zeros(2, BLOCK_SIZE, 2, 24, dtype=cache_dtype) for _ in range(2)))
    store_kv(cpu, keys, values, cache, torch.tensor([6, 0, 3]))
    cache = by_token(cache) if cpu.stores_by_head else cache
    for stored, given in ((cache.keys, keys), (cache.values, values)):
        found = stored.flatten(0, 1)[[6, 0, 3]]
        torch.testing.assert_close(found, given.to(cache_dtype), rtol=0, atol=0, equal_nan=True)
