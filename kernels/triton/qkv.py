"""Norm, rotation and the store of keys and values in one pass: each number is read once and written once.

A program has one token and some heads of one part, queries or keys or values, so that it branches once, the
same way for all its threads. A head is cut into what turns against each other, first and second half of R,
and the rest: three tiles that are loaded and stored in whole vectors whatever R and D are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention import AttentionPlan, LayerCache
from kernels.qkv import HeadNorm, Turn
from kernels.triton.fp8 import encode, scale_of


@triton.jit
def _load(
    heads: tl.tensor,
    kept: tl.tensor,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """Numbers START to START + WIDTH of heads at these pointers, [heads, PADDED] float32."""
    d = tl.arange(0, PADDED)
    mask = kept[:, None] & (d < WIDTH)[None, :]
    return tl.load(heads[:, None] + START + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(
    heads: tl.tensor,
    x: tl.tensor,
    kept: tl.tensor,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    """What `_load` reads; x is bytes or is rounded to what the pointers point to."""
    d = tl.arange(0, PADDED)
    mask = kept[:, None] & (d < WIDTH)[None, :]
    dtype = heads.dtype.element_ty  # pyright: ignore[reportAttributeAccessIssue] - a pointer's type has it
    tl.store(heads[:, None] + START + d[None, :], x.to(dtype), mask=mask)


@triton.jit
def _encode_scaled(x: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """x: [heads, numbers]; scale: [heads]."""
    return encode(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)))


@triton.jit(do_not_specialize=["eps"], do_not_specialize_on_alignment=["slots"])
def _store_kernel(
    q_out: tl.tensor,
    cached_keys: tl.tensor,
    cached_values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    q_stride: tl.tensor,
    k_stride: tl.tensor,
    v_stride: tl.tensor,
    q_head_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_head_stride: tl.tensor,
    slots: tl.tensor,
    norm_weight: tl.tensor,
    eps: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_FP8: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    REST_PADDED: tl.constexpr,
):
    REST: tl.constexpr = D - 2 * HALF
    Q_BLOCKS: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    KV_BLOCKS: tl.constexpr = (KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    block = tl.program_id(0) % (Q_BLOCKS + 2 * KV_BLOCKS)
    t = (tl.program_id(0) // (Q_BLOCKS + 2 * KV_BLOCKS)).to(tl.int64)

    is_query = block < Q_BLOCKS
    is_value = block >= Q_BLOCKS + KV_BLOCKS
    if is_query:
        head = block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        kept = head < HEADS
        source = queries + t * q_stride + head * q_head_stride
    elif is_value:
        head = (block - Q_BLOCKS - KV_BLOCKS) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        kept = head < KV_HEADS
        source = values + t * v_stride + head * v_head_stride
    else:
        head = (block - Q_BLOCKS) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        kept = head < KV_HEADS
        source = keys + t * k_stride + head * k_head_stride

    # A part that is not there is one column of zeros, never stored.
    first = _load(source, kept, 0, HALF, HALF_PADDED)
    second = _load(source, kept, HALF, HALF, HALF_PADDED)
    rest = _load(source, kept, 2 * HALF, REST, REST_PADDED)

    if not is_value:
        if HAS_NORM:
            squares = tl.sum(first * first, 1) + tl.sum(second * second, 1) + tl.sum(rest * rest, 1)
            factor = tl.rsqrt(squares / D + eps)[:, None]
            weight = norm_weight + (head + tl.where(is_query, 0, HEADS)) * D
            first *= factor * _load(weight, kept, 0, HALF, HALF_PADDED)
            second *= factor * _load(weight, kept, HALF, HALF, HALF_PADDED)
            rest *= factor * _load(weight, kept, 2 * HALF, REST, REST_PADDED)
        if HALF > 0:
            pair = tl.arange(0, HALF_PADDED)
            c = tl.load(cos + t * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
            s = tl.load(sin + t * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
            turned = first * c - second * s
            second = second * c + first * s
            first = turned

    if is_query:
        to_q = q_out + (t * HEADS + head) * D
        _store(to_q, first, kept, 0, HALF, HALF_PADDED)
        _store(to_q, second, kept, HALF, HALF, HALF_PADDED)
        _store(to_q, rest, kept, 2 * HALF, REST, REST_PADDED)
    else:
        place = tl.load(slots + t) * KV_HEADS + head
        target = (cached_values if is_value else cached_keys) + place * D
        if IS_FP8:
            greatest = tl.max(tl.abs(rest), 1)
            greatest = tl.maximum(greatest, tl.max(tl.maximum(tl.abs(first), tl.abs(second)), 1))
            # The greatest of numbers passes over NaN; a vector that has one shall not come back finite.
            poison = 0.0 * (tl.sum(first, 1) + tl.sum(second, 1) + tl.sum(rest, 1))
            scale = scale_of(greatest + poison)
            tl.store((value_scales if is_value else key_scales) + place, scale, mask=kept)
            _store(target, _encode_scaled(first, scale), kept, 0, HALF, HALF_PADDED)
            _store(target, _encode_scaled(second, scale), kept, HALF, HALF, HALF_PADDED)
            _store(target, _encode_scaled(rest, scale), kept, 2 * HALF, REST, REST_PADDED)
        else:
            _store(target, first, kept, 0, HALF, HALF_PADDED)
            _store(target, second, kept, HALF, HALF, HALF_PADDED)
            _store(target, rest, kept, 2 * HALF, REST, REST_PADDED)


_BYTES_PER_PROGRAM = 4096
"""32 bytes, two whole vectors, for each of 128 threads: two loads on their way, and a decode of few tokens
still has some programs for each multiprocessor."""


def _launch(
    q_out: Tensor | None,
    parts: tuple[Tensor, Tensor, Tensor],
    norm: HeadNorm | None,
    turn: Turn | None,
    cache: LayerCache,
    slots: Tensor,
) -> None:
    """parts: queries, keys and values [T, its heads, D]. Without `q_out` queries are not looked at."""
    queries, keys, values = parts
    num_tokens, num_kv_heads, head_dim = keys.shape
    num_heads = 0 if q_out is None else queries.shape[1]
    half = 0 if turn is None else turn.cos.shape[1]
    fitting = max(1, _BYTES_PER_PROGRAM // (head_dim * keys.element_size()))
    most_heads = triton.next_power_of_2(max(num_heads, num_kv_heads))
    block_heads = min(most_heads, 1 << (fitting.bit_length() - 1))
    num_blocks = -(-num_heads // block_heads) + 2 * -(-num_kv_heads // block_heads)
    is_fp8 = cache.key_scales is not None
    kernel: Any = _store_kernel[(num_tokens * num_blocks,)]
    kernel(
        keys if q_out is None else q_out,
        cache.keys.view(torch.uint8) if is_fp8 else cache.keys,
        cache.values.view(torch.uint8) if is_fp8 else cache.values,
        keys if cache.key_scales is None else cache.key_scales,
        keys if cache.value_scales is None else cache.value_scales,
        queries,
        keys,
        values,
        queries.stride(0),
        keys.stride(0),
        values.stride(0),
        queries.stride(1),
        keys.stride(1),
        values.stride(1),
        slots,
        keys if norm is None else norm.weight,
        0.0 if norm is None else norm.eps,
        keys if turn is None else turn.cos,
        keys if turn is None else turn.sin,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        D=head_dim,
        HALF=half,
        HAS_NORM=norm is not None,
        IS_FP8=is_fp8,
        BLOCK_HEADS=block_heads,
        HALF_PADDED=triton.next_power_of_2(max(half, 1)),
        REST_PADDED=triton.next_power_of_2(max(head_dim - 2 * half, 1)),
    )


def store_kv(keys: Tensor, values: Tensor, cache: LayerCache, slot_mapping: Tensor) -> None:
    """See `kernels.attention.store_kv`."""
    _launch(None, (keys, keys, values), None, None, cache, slot_mapping)


def rotate_and_store(
    qkv: Tensor, norm: HeadNorm | None, turn: Turn | None, plan: AttentionPlan, cache: LayerCache
) -> Tensor:
    """See `kernels.qkv.rotate_and_store`. Nothing is rounded between norm, rotation and store."""
    shape = plan.shape
    heads = qkv.view(qkv.shape[0], -1, shape.head_dim)
    queries, keys, values = heads.split((shape.num_heads, shape.num_kv_heads, shape.num_kv_heads), dim=1)
    q_out = qkv.new_empty(queries.shape)
    _launch(q_out, (queries, keys, values), norm, turn, cache, plan.metadata.slot_mapping)
    return q_out
