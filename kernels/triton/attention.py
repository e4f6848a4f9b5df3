"""Paged attention on a GPU: what is chosen on the host. See `kernels.triton.attention_tile` for the kernel.

Decodes have one program for each sequence and KV head, or several where `attention_split` cuts the context.
Sequences with more queries go through the same kernel as tiles of queries, in a launch of their own; how many
tiles there are is bounded by numbers that the host knows, and each finds its sequence.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import triton
from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape, LayerCache
from kernels.triton.attention_split import num_splits_of, reduce_splits
from kernels.triton.attention_tile import attention_kernel
from kernels.triton.device import num_sms

LOG2_E: Final = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class Launch:
    """How a tile is cut and compiled."""

    block_m: int
    """Rows: each query with each head of a KV head's group."""
    block_n: int
    """Keys at once."""
    num_warps: int
    num_stages: int
    """How far loads run ahead: with 2 the keys, with 3 also the table that says where they are; every 2 more
    have one tile of keys more on its way."""


@functools.lru_cache
def launch_of(max_query_len: int, group: int, head_dim: int, dtype: torch.dtype, is_fp8: bool) -> Launch:
    """The launch for queries of `dtype`, no sequence with more than `max_query_len`.

    Few answers, as each is compiled when it is first met. They were chosen by what they compile to for sm_80
    and sm_90, without spilling registers to speak of; nothing has been timed. What to try first on a device
    is said beside each.
    """
    heads = triton.next_power_of_2(group)
    wide = triton.next_power_of_2(head_dim) > 128
    is_decode = max_query_len == 1
    if dtype == torch.float32:
        # Plain multiplications instead of matrix units: only small tiles stay in registers.
        block_n = 32 if is_decode and not wide else 16
        launch = Launch(16, block_n, num_warps=8 if wide or is_fp8 else 4, num_stages=2)
    elif is_decode:
        # A tile of keys and values is 32 KiB, 16 of FP8; 39 KiB of shared memory and 128 registers let four
        # programs onto a multiprocessor, so that 128 KiB are on their way where bandwidth times latency asks
        # for 23. Try: 5 stages; 128 keys for FP8.
        block_n = 128 if head_dim <= 64 else 32 if wide else 64
        launch = Launch(16, block_n, num_warps=4, num_stages=3)
    elif wide:
        # 4 warps would hold 128 numbers of the result each thread, and spill. Try: 128 rows on sm_90.
        launch = Launch(64, block_n=32, num_warps=8, num_stages=3)
    elif is_fp8 or max_query_len * group <= 64:
        # Every warp decodes all keys of a tile: with 4 that is half as much. Try for FP8: 128, 64, 8 warps.
        launch = Launch(64, block_n=32, num_warps=4, num_stages=3)
    else:
        # A warpgroup's matrix instruction has 64 rows, and two work on one tile of keys. More rows would use
        # a key oftener, but a decode among prompts leaves all but `group` rows empty. Try: 128 keys; 64 rows
        # of 4 warps, two programs of which fit on a multiprocessor; 5 stages.
        launch = Launch(128, block_n=64, num_warps=8, num_stages=3)
    if heads <= launch.block_m:
        return launch
    return replace(launch, block_m=heads, num_warps=8)


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences that go through one launch."""

    metadata: AttentionMetadata
    """Of these alone, its bounds counted from `first_token`."""
    first_token: int
    num_tokens: int
    num_splits: int
    """Parts that each context is cut into; 1 where any sequence may have several queries."""


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """What the layers of one shape share in one step."""

    metadata: AttentionMetadata
    shape: AttentionShape
    parts: tuple[Part, ...]
    """Decodes, and what has more queries."""
    slopes: Tensor | None
    """[heads] float32, times log2(e)."""
    has_native_fp8: bool
    """Whether the device converts FP8 by an instruction of its own."""


def plan_attention(metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
    """See `kernels.attention.plan_attention`. In a step with prompts, decodes have a launch of their own: a
    tile for prompts would leave most of its rows empty, and none of it cuts a long context."""
    assert shape.scale > 0, f"scale {shape.scale}: the greatest product has to be the greatest score"
    device = metadata.context_lens.device
    num_seqs, num_tokens = metadata.context_lens.shape[0], metadata.slot_mapping.shape[0]
    num_decodes = num_seqs if metadata.max_query_len == 1 else min(metadata.num_decodes, num_seqs)
    parts: list[Part] = []
    if num_decodes > 0:
        decodes = _sequences(metadata, 0, num_decodes, max_query_len=1)
        num_splits = _num_splits(decodes, shape, device)
        parts.append(Part(decodes, 0, num_decodes, num_splits))
    if num_decodes < num_seqs:
        others = _sequences(metadata, num_decodes, num_seqs, max_query_len=metadata.max_query_len)
        parts.append(Part(others, num_decodes, num_tokens - num_decodes, num_splits=1))
    slopes = _slopes_on(device, shape.alibi_slopes) if shape.alibi_slopes else None
    return TritonPlan(metadata, shape, tuple(parts), slopes, _has_native_fp8(device))


def _sequences(metadata: AttentionMetadata, start: int, end: int, max_query_len: int) -> AttentionMetadata:
    """Some consecutive ones. start: 0, or the number of decodes before them, and so of their tokens."""
    if start == 0 and end == metadata.context_lens.shape[0]:
        return metadata
    bounds = metadata.cu_seqlens_q[start : end + 1]
    return replace(
        metadata,
        cu_seqlens_q=bounds - start if start else bounds,
        context_lens=metadata.context_lens[start:end],
        block_tables=metadata.block_tables[start:end],
        max_query_len=max_query_len,
        num_decodes=0,
    )


def _num_splits(decodes: AttentionMetadata, shape: AttentionShape, device: torch.device) -> int:
    num_programs = decodes.context_lens.shape[0] * shape.num_kv_heads
    max_keys = min(decodes.max_context_len, shape.window or decodes.max_context_len)
    return num_splits_of(num_programs, max_keys, num_sms(device))


@functools.lru_cache
def _has_native_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@functools.lru_cache
def _slopes_on(device: torch.device, slopes: tuple[float, ...]) -> Tensor:
    """Copied once: a copy in every step would wait for the device, and none can be recorded."""
    return torch.tensor([slope * LOG2_E for slope in slopes], device=device)


def attention(q: Tensor, cache: LayerCache, plan: AttentionPlan, out: Tensor) -> None:
    """See `kernels.attention.attention`."""
    assert isinstance(plan, TritonPlan), "this plan was made by another op set"
    for part in plan.parts:
        tokens = slice(part.first_token, part.first_token + part.num_tokens)
        _launch(q[tokens], cache, plan, part, out[tokens])


def _launch(q: Tensor, cache: LayerCache, plan: TritonPlan, part: Part, out: Tensor) -> None:
    metadata, shape, num_splits = part.metadata, plan.shape, part.num_splits
    num_tokens, num_heads, head_dim = q.shape
    num_seqs = metadata.context_lens.shape[0]
    group = num_heads // shape.num_kv_heads
    is_decode, is_fp8 = metadata.max_query_len == 1, cache.key_scales is not None
    launch = launch_of(metadata.max_query_len, group, head_dim, q.dtype, is_fp8)
    if is_decode:
        num_tiles = num_seqs * num_splits
    else:
        num_tiles = num_tokens // (launch.block_m // group) + num_seqs
    partial = partial_log = q
    if num_splits > 1:
        partial = q.new_empty((num_seqs, num_heads, num_splits, head_dim), dtype=torch.float32)
        partial_log = q.new_empty((num_seqs, num_heads, num_splits), dtype=torch.float32)
    kernel: Any = attention_kernel[(num_tiles * shape.num_kv_heads,)]
    kernel(
        out,
        partial,
        partial_log,
        q,
        cache.keys.view(torch.uint8) if is_fp8 else cache.keys,
        cache.values.view(torch.uint8) if is_fp8 else cache.values,
        q if cache.key_scales is None else cache.key_scales,
        q if cache.value_scales is None else cache.value_scales,
        q if plan.slopes is None else plan.slopes,
        metadata.cu_seqlens_q,
        metadata.context_lens,
        metadata.block_tables,
        num_seqs,
        num_splits,
        # What the kernel makes of a product: see `_scores`.
        shape.scale * LOG2_E * (2 / shape.soft_cap if shape.soft_cap else 1),
        shape.soft_cap * LOG2_E,
        shape.window,
        q.stride(0),
        q.stride(1),
        metadata.block_tables.stride(0),
        HEADS=num_heads,
        KV_HEADS=shape.num_kv_heads,
        D=head_dim,
        D_PADDED=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_SIZE=metadata.block_size,
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        IS_DECODE=is_decode,
        IS_SPLIT=num_splits > 1,
        IS_FP8=is_fp8,
        HAS_NATIVE_FP8=is_fp8 and plan.has_native_fp8,
        HAS_WINDOW=shape.window > 0,
        HAS_CAP=shape.soft_cap > 0,
        HAS_ALIBI=plan.slopes is not None,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    if num_splits > 1:
        reduce_splits(out, partial, partial_log, metadata.cu_seqlens_q)
