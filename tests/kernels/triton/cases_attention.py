"""What paged attention is tested and compiled with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import triton
from torch import Tensor

from kernels.attention import FP8, AttentionMetadata, AttentionPlan, AttentionShape, LayerCache
from kernels.reference import store_kv
from kernels.triton.attention import TritonPlan, attention, plan_attention
from tests.kernels.paged import Paged, make
from tests.kernels.triton.device import DEVICE

MIXED = [(1, 1), (1, 40), (5, 5), (63, 63), (7, 100), (1, 16), (1, 17), (3, 33)]
DECODES = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 63), (1, 130)]
CHUNKS = [(20, 77), (1, 128), (9, 72)]
"""Their first queries are in the middle of a block."""


@dataclass(frozen=True)
class Case:
    lengths: list[tuple[int, int]]
    """Queries and context of each sequence."""
    shape: AttentionShape
    block_size: int = 16
    is_fp8: bool = False

    def __str__(self) -> str:
        s = self.shape
        features = f"{s.window or ''}w{s.soft_cap or ''}c{'a' if s.alibi_slopes else ''}"
        of_cache = f"b{self.block_size}{'f8' if self.is_fp8 else ''}"
        return f"{self.lengths[:3]}-{s.num_heads}/{s.num_kv_heads}x{s.head_dim}-{features}-{of_cache}"


def shape_of(
    head_dim: int, num_kv_heads: int, group: int, window: int = 0, soft_cap: float = 0.0, alibi: bool = False
) -> AttentionShape:
    num_heads = num_kv_heads * group
    slopes = tuple(0.8 ** (head + 1) for head in range(num_heads)) if alibi else ()
    return AttentionShape(num_heads, num_kv_heads, head_dim, head_dim**-0.5, window, soft_cap, slopes)


CASES = [
    Case(MIXED, shape_of(64, 2, 4), 16),
    Case(MIXED, shape_of(80, 1, 7, window=20), 8),
    Case(MIXED, shape_of(32, 1, 16, soft_cap=2.0, alibi=True), 32, is_fp8=True),
    Case(MIXED, shape_of(128, 1, 1, window=16, soft_cap=2.0), 64),
    Case(CHUNKS, shape_of(96, 2, 3, alibi=True), 16),
    Case(CHUNKS, shape_of(128, 1, 8, window=33, alibi=True), 8, is_fp8=True),
    Case(CHUNKS, shape_of(256, 1, 2, soft_cap=2.0), 32),
    Case(CHUNKS, shape_of(64, 1, 5, window=1), 1),
    Case([(63, 63)], shape_of(80, 3, 1), 64, is_fp8=True),
    Case(DECODES, shape_of(64, 2, 8, window=20), 8, is_fp8=True),
    Case(DECODES, shape_of(80, 3, 1, alibi=True), 32),
    Case(DECODES, shape_of(96, 1, 6, soft_cap=2.0), 64, is_fp8=True),
    Case(DECODES, shape_of(128, 2, 4), 16),
    Case(DECODES, shape_of(256, 1, 16, window=100, soft_cap=2.0), 16),
    Case(DECODES, shape_of(32, 1, 71), 16),
    Case([(1, 1000)], shape_of(64, 1, 4), 16),
    Case([(1, 15), (3, 31)], shape_of(32, 1, 9), 16),  # a token short of full blocks
    Case([(1, 33), (2, 16)], shape_of(32, 1, 12, window=9, alibi=True), 16),
]
"""Pairwise: head size, group, features, block size, dtype of the cache; for prompts, chunks, decodes."""

if DEVICE == "cuda":
    PROMPTS = [(1000, 1000), (512, 3000), (1, 4000), (1, 257), (129, 2049), (1, 1)]
    LONG = [(1, 200 + 161 * i) for i in range(24)]
    CASES += [
        Case(lengths, shape, block_size, is_fp8)
        for head_dim, is_fp8, block_size in [
            (128, False, 16),
            (64, True, 32),
            (256, False, 64),
            (128, True, 16),
        ]
        for shape in (shape_of(head_dim, 2, 4), shape_of(head_dim, 1, 8, window=1024, soft_cap=30.0))
        for lengths in (PROMPTS, LONG)
    ]


def paged_of(case: Case, dtype: torch.dtype) -> Paged:
    """On the device, of this dtype or FP8, with NaN in every slot that holds no token."""
    paged = make(case.lengths, case.shape, case.block_size, seed=len(case.lengths))
    keys, values = paged.cache.keys, paged.cache.values
    keys[keys == 1e6], values[values == -1e6] = torch.nan, torch.nan
    keys[0], values[0] = torch.nan, torch.nan
    keys, values = keys.to(DEVICE, dtype), values.to(DEVICE, dtype)
    return replace(
        paged,
        q=paged.q.to(DEVICE, dtype),
        cache=_to_fp8(keys, values) if case.is_fp8 else LayerCache(keys, values),
        metadata=metadata_to(paged.metadata, DEVICE),
    )


def _to_fp8(keys: Tensor, values: Tensor) -> LayerCache:
    cache = empty_cache(keys.shape, FP8, keys.device)
    slots = torch.arange(keys.shape[0] * keys.shape[1], device=keys.device)
    store_kv(keys.flatten(0, 1), values.flatten(0, 1), cache, slots)
    assert cache.key_scales is not None
    assert cache.value_scales is not None
    cache.key_scales[keys[..., 0].isnan()] = torch.nan
    cache.value_scales[values[..., 0].isnan()] = torch.nan
    return cache


def empty_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> LayerCache:
    """NaN everywhere."""
    keys = torch.full(shape, torch.nan, device=device).to(dtype)
    if dtype != FP8:
        return LayerCache(keys, keys.clone())
    scales = torch.full(shape[:3], torch.nan, device=device)
    return LayerCache(keys, keys.clone(), scales, scales.clone())


def with_splits(plan: AttentionPlan, num_splits: int) -> TritonPlan:
    """The plan with each decode's context cut into so many parts."""
    assert isinstance(plan, TritonPlan)
    parts = [
        replace(part, num_splits=num_splits) if part.metadata.max_query_len == 1 else part
        for part in plan.parts
    ]
    return replace(plan, parts=tuple(parts))


def metadata_to(metadata: AttentionMetadata, device: str) -> AttentionMetadata:
    return replace(
        metadata,
        cu_seqlens_q=metadata.cu_seqlens_q.to(device),
        context_lens=metadata.context_lens.to(device),
        block_tables=metadata.block_tables.to(device),
        slot_mapping=metadata.slot_mapping.to(device),
    )


def _compiled(
    shape: AttentionShape,
    max_query_len: int,
    dtype: torch.dtype,
    is_fp8: bool,
    num_splits: int,
    block_size: int,
) -> None:
    batch = 2
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.arange(batch + 1, dtype=torch.int32) * max_query_len,
        context_lens=torch.full((batch,), 512, dtype=torch.int32),
        block_tables=torch.zeros(batch, 512 // block_size, dtype=torch.int32),
        slot_mapping=torch.zeros(batch * max_query_len, dtype=torch.int64),
        block_size=block_size,
        max_query_len=max_query_len,
        max_context_len=512,
    )
    plan = plan_attention(metadata, shape)
    q = torch.zeros(batch * max_query_len, shape.num_heads, shape.head_dim, dtype=dtype)
    # Each generation as it would decode: a processor's tensors don't tell.
    has_native_fp8 = triton.runtime.driver.active.get_current_target().arch >= 89
    plan = replace(with_splits(plan, num_splits), has_native_fp8=has_native_fp8)
    cache = empty_cache((4, block_size, shape.num_kv_heads, shape.head_dim), FP8 if is_fp8 else dtype, "cpu")
    attention(q, cache, plan, torch.empty_like(q))


_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
_LAUNCHES: list[tuple[AttentionShape, int, torch.dtype, bool, int, int]] = [
    # shape, queries of each sequence (1: decode), dtype, whether the cache is FP8, splits, block size
    (shape_of(128, 8, 4), 512, _BF16, False, 1, 16),
    (shape_of(128, 8, 4), 1, _BF16, False, 1, 16),
    (shape_of(128, 8, 4), 1, _BF16, False, 4, 16),
    (shape_of(128, 8, 4), 8, _BF16, False, 1, 16),
    (shape_of(128, 8, 8), 512, _BF16, True, 1, 32),
    (shape_of(128, 8, 8), 1, _FP16, True, 1, 16),
    (shape_of(64, 8, 1, window=1000), 512, _FP16, False, 1, 64),
    (shape_of(64, 2, 16, alibi=True), 1, _BF16, True, 4, 8),
    (shape_of(80, 8, 5, soft_cap=30.0), 512, _FP16, False, 1, 8),
    (shape_of(80, 8, 2, window=1000), 1, _BF16, False, 1, 32),
    (shape_of(96, 4, 7, alibi=True), 512, _BF16, False, 1, 16),
    (shape_of(96, 4, 7, soft_cap=30.0), 1, _FP16, True, 1, 64),
    (shape_of(256, 4, 2, window=1000, soft_cap=30.0), 512, _BF16, False, 1, 16),
    (shape_of(256, 4, 2, window=1000, soft_cap=30.0), 1, _BF16, False, 4, 16),
    (shape_of(256, 1, 8), 512, _FP16, True, 1, 16),
    (shape_of(64, 1, 71), 1, _BF16, False, 1, 16),
    (shape_of(128, 2, 4, soft_cap=30.0, alibi=True), 64, _FP32, False, 1, 16),
    (shape_of(64, 2, 4, window=1000), 1, _FP32, True, 4, 16),
    (shape_of(256, 2, 1), 1, _FP32, False, 1, 8),
    (shape_of(256, 2, 1, window=1000), 64, _FP32, True, 1, 8),
    (shape_of(64, 2, 4), 1, _FP16, False, 4, 16),
    (shape_of(64, 2, 4, window=1000, alibi=True), 1, _BF16, False, 1, 16),
]
COMPILED: list[tuple[str, Callable[[], None]]] = [
    (" ".join(map(str, arguments)), partial(_compiled, *arguments)) for arguments in _LAUNCHES
]
SPILL_LIMITS = {"attention_kernel": 176}
"""Bytes. Heads of 256 in float32 out of FP8 need all of them; heads of 80 or 96, padded to 128, with a cap or
slopes, 80 on sm_80. No other spills more than 24."""
