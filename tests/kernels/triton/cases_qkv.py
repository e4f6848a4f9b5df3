"""What norm, rotation and the store of keys and values are tested and compiled with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels.attention import FP8, AttentionMetadata, AttentionShape
from kernels.qkv import HeadNorm, Turn
from kernels.reference import ReferencePlan
from kernels.triton.qkv import rotate_and_store, store_kv
from tests.kernels.triton.cases_attention import empty_cache
from tests.kernels.triton.device import DEVICE


@dataclass(frozen=True)
class Case:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    """0: no rotation."""
    has_norm: bool = False
    is_fp8: bool = False
    block_size: int = 16
    num_tokens: int = 5


CASES = [
    Case(4, 2, 64, 64),
    Case(7, 1, 80, 32, has_norm=True),
    Case(3, 3, 96, 96, is_fp8=True, block_size=8),
    Case(16, 2, 128, 128, has_norm=True, block_size=32),
    Case(8, 1, 128, 64, has_norm=True, is_fp8=True),
    Case(2, 1, 256, 64, is_fp8=True, block_size=64),
    Case(4, 4, 64, 0),
    Case(5, 1, 80, 0, is_fp8=True),
    Case(4, 2, 64, 0, has_norm=True, block_size=1),
    Case(71, 1, 64, 64, num_tokens=2),
]
"""Pairwise: heads, head size, how much of it turns, norm, dtype of the cache."""

if DEVICE == "cuda":
    CASES += [
        Case(32, 8, 128, 128, num_tokens=4096),
        Case(32, 8, 128, 128, has_norm=True, is_fp8=True, num_tokens=4096),
        Case(8, 4, 256, 256, num_tokens=1000),
        Case(32, 32, 80, 32, is_fp8=True, num_tokens=257),
    ]


@dataclass(frozen=True)
class Inputs:
    qkv: Tensor
    norm: HeadNorm | None
    turn: Turn | None
    plan: ReferencePlan
    cache_shape: tuple[int, ...]


def inputs(case: Case, dtype: torch.dtype, device: str = DEVICE) -> Inputs:
    """Tokens go to slots all over the cache, but for the null block."""
    gen = torch.Generator().manual_seed(case.num_heads + case.head_dim)
    num_tokens, num_turned = case.num_tokens, case.num_heads + case.num_kv_heads
    width = (num_turned + case.num_kv_heads) * case.head_dim
    qkv = torch.randn(num_tokens, width, generator=gen) * torch.randn(num_tokens, 1, generator=gen).exp()
    norm = HeadNorm(torch.randn(num_turned, case.head_dim, generator=gen).to(device), 1e-6)
    angles = torch.randn(num_tokens, case.rotary_dim // 2, generator=gen) * 10
    num_blocks = 2 + -(-num_tokens // case.block_size)
    slots = torch.randperm((num_blocks - 1) * case.block_size, generator=gen)[:num_tokens] + case.block_size
    shape = AttentionShape(case.num_heads, case.num_kv_heads, case.head_dim, case.head_dim**-0.5)
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        context_lens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        block_tables=torch.zeros(1, 1, dtype=torch.int32, device=device),
        slot_mapping=slots.to(device),
        block_size=case.block_size,
        max_query_len=max(num_tokens, 1),
        max_context_len=max(num_tokens, 1),
    )
    return Inputs(
        qkv=qkv.to(device, dtype),
        norm=norm if case.has_norm else None,
        turn=Turn(angles.cos().to(device), angles.sin().to(device)) if case.rotary_dim else None,
        plan=ReferencePlan(metadata, shape),
        cache_shape=(num_blocks, case.block_size, case.num_kv_heads, case.head_dim),
    )


def _rotate(case: Case, dtype: torch.dtype) -> None:
    made = inputs(case, dtype, "cpu")
    cache = empty_cache(made.cache_shape, FP8 if case.is_fp8 else dtype, "cpu")
    rotate_and_store(made.qkv, made.norm, made.turn, made.plan, cache)


def _store(case: Case, dtype: torch.dtype) -> None:
    made = inputs(case, dtype, "cpu")
    heads = made.qkv.view(case.num_tokens, -1, case.head_dim)
    keys, values = heads[:, -2 * case.num_kv_heads :].chunk(2, dim=1)
    cache = empty_cache(made.cache_shape, FP8 if case.is_fp8 else dtype, "cpu")
    store_kv(keys, values, cache, made.plan.metadata.slot_mapping)


_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
COMPILED: list[tuple[str, Callable[[], None]]] = [
    (f"{thunk.__name__} {case} {dtype}", partial(thunk, case, dtype))
    for thunk, case, dtype in [
        (_rotate, Case(32, 8, 128, 128), _BF16),
        (_rotate, Case(32, 8, 128, 128, has_norm=True, is_fp8=True), _BF16),
        (_rotate, Case(32, 32, 80, 32, has_norm=True), _FP16),
        (_rotate, Case(12, 4, 96, 96, is_fp8=True), _FP16),
        (_rotate, Case(71, 1, 64, 64), _BF16),
        (_rotate, Case(8, 4, 256, 64, has_norm=True), _FP32),
        (_rotate, Case(12, 12, 64, 0), _FP32),
        (_store, Case(32, 8, 128, 0), _BF16),
        (_store, Case(32, 8, 80, 0, is_fp8=True), _FP16),
        (_store, Case(32, 8, 256, 0, is_fp8=True), _FP32),
    ]
]
