"""One tile of attention: some queries of one sequence, all heads of one KV head, over some of the context.

Rows of a tile are (query, head of the group) pairs, so that keys and values, which these share, are read once
for all of them. The softmax runs along with the keys (Milakov and Gimelshein 2018; Dao et al. 2022,
FlashAttention), in base 2. Keys are read straight out of the cache's blocks, as many at once as a tile has.

What lies past a context was never written and may be NaN, which a weight of 0 doesn't make 0: it is not read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton.fp8 import decode

_LOWEST = tl.constexpr(-1.0e30)
"""A maximum before the first key: finite, as the difference of two infinities is NaN."""


@triton.jit
def _tile_of(index: int, cu_seqlens_q: tl.tensor, num_seqs: int, BLOCK_Q: tl.constexpr) -> tuple[int, int]:
    """Which sequence the tile belongs to, and which of its tiles it is.

    Sequence b's tiles start at cu_seqlens_q[b] // BLOCK_Q + b, which leaves room for what its predecessors
    may have rounded up; so some tiles are past the end of their sequence. How many sequences start at or
    before `index` is counted 256 at a time: one load from memory where a bisection waits for eight.
    """
    count = 0
    for start in range(0, num_seqs, 256):
        b = start + tl.arange(0, 256)
        first = tl.load(cu_seqlens_q + b, mask=b < num_seqs, other=0) // BLOCK_Q + b
        count += tl.sum(((b < num_seqs) & (first <= index)).to(tl.int32))
    seq = count - 1
    return seq, index - (tl.load(cu_seqlens_q + seq) // BLOCK_Q + seq)


@triton.jit
def _scores(
    products: tl.tensor,
    distance: tl.tensor,
    slope: tl.tensor,
    scale: float,
    soft_cap: float,
    HAS_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
) -> tl.tensor:
    """products: q · k. Returns scores times log2(e), a factor that `scale`, `soft_cap` and `slope` have.

    Where there is a cap, `scale` has to make of products twice the argument of tanh (times log2(e))."""
    if HAS_CAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), which is right at both infinities.
        scores = soft_cap * (1.0 - 2.0 / (tl.exp2(products * scale) + 1.0))
    else:
        scores = products * scale
    if HAS_ALIBI:
        scores += slope[:, None] * distance.to(tl.float32)
    return scores


@triton.jit
def _of_keys(pointers: tl.tensor, in_context: tl.tensor, MASKED: tl.constexpr) -> tl.tensor:
    """One number for each key, 0 past the context."""
    if MASKED:
        x = tl.load(pointers, mask=in_context, other=0)
    else:
        x = tl.load(pointers)
    return x


@triton.jit
def _attend(
    acc: tl.tensor,
    greatest: tl.tensor,
    total: tl.tensor,
    q: tl.tensor,
    position: tl.tensor,
    slope: tl.tensor,
    start: int,
    end: int,
    context_len: int,
    table: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    scale: float,
    soft_cap: float,
    window: int,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_FP8: tl.constexpr,
    HAS_NATIVE_FP8: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Goes on with keys `start` to `end`, `start` a multiple of BLOCK_N.

    Without MASKED every row sees every one of these keys, and they end where a tile does.
    """
    d = tl.arange(0, D_PADDED)[None, :]
    for tile in range(start, end, BLOCK_N):
        key = tl.multiple_of(tile, BLOCK_N) + tl.arange(0, BLOCK_N)
        in_context = key < context_len
        block = _of_keys(table + key // BLOCK_SIZE, in_context, MASKED)
        place = (block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE) * KV_HEADS
        at = place[:, None] * D + d
        if MASKED:
            read = in_context[:, None] & (d < D)
            k = tl.load(keys + at, mask=read, other=0)
            v = tl.load(values + at, mask=read, other=0)
        elif D == D_PADDED:
            k = tl.load(keys + at)
            v = tl.load(values + at)
        else:
            k = tl.load(keys + at, mask=d < D, other=0)
            v = tl.load(values + at, mask=d < D, other=0)
        if IS_FP8:
            k = decode(k, q, HAS_NATIVE_FP8)
            v = decode(v, q, HAS_NATIVE_FP8)

        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        if IS_FP8:
            products *= _of_keys(key_scales + place, in_context, MASKED)[None, :]
        distance = key[None, :] - position[:, None]
        scores = _scores(products, distance, slope, scale, soft_cap, HAS_CAP, HAS_ALIBI)
        if MASKED:
            seen = distance <= 0
            if HAS_WINDOW:
                seen = seen & (distance > -window)
            scores = tl.where(seen, scores, float("-inf"))
        new_greatest = tl.maximum(greatest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_greatest[:, None])
        shrink = tl.exp2(greatest - new_greatest)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        if IS_FP8:
            weights *= _of_keys(value_scales + place, in_context, MASKED)[None, :]
        acc = tl.dot(weights.to(q.dtype), v, acc, input_precision="ieee")
        greatest = new_greatest
    return acc, greatest, total


# What differs from step to step, or where in memory it lies does, must not make variants to be compiled.
@triton.jit(
    do_not_specialize=["num_seqs", "num_splits", "scale", "soft_cap", "window", "table_stride"],
    do_not_specialize_on_alignment=["cu_seqlens_q", "context_lens", "block_tables"],
)
def attention_kernel(
    out: tl.tensor,
    partial: tl.tensor,
    partial_log: tl.tensor,
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    slopes: tl.tensor,
    cu_seqlens_q: tl.tensor,
    context_lens: tl.tensor,
    block_tables: tl.tensor,
    num_seqs: int,
    num_splits: int,
    scale: float,
    soft_cap: float,
    window: int,
    q_stride: int,
    q_head_stride: int,
    table_stride: int,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_DECODE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    IS_FP8: tl.constexpr,
    HAS_NATIVE_FP8: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
):
    """A program for each tile, split and KV head; these run together, as they read neighbouring memory.

    Writes `out` [T, HEADS, D], or, where contexts are split, `partial` [B, HEADS, splits, D] and
    `partial_log` [B, HEADS, splits], which `attention_split` puts together."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0) % KV_HEADS
    rest = tl.program_id(0) // KV_HEADS
    if IS_DECODE:
        split = rest % num_splits
        seq = rest // num_splits
        tile = 0
    else:
        # The last first: the longest prompts' last tiles have the most to do.
        last = tl.num_programs(0) // KV_HEADS - 1
        split = 0
        seq, tile = _tile_of(  # pyright: ignore[reportGeneralTypeIssues] - typed as what raises on the host
            last - rest, cu_seqlens_q, num_seqs, BLOCK_Q
        )
    first_row = tl.load(cu_seqlens_q + seq)
    query_len = tl.load(cu_seqlens_q + seq + 1) - first_row
    if tile * BLOCK_Q >= query_len:
        return
    context_len = tl.load(context_lens + seq)

    m = tl.arange(0, BLOCK_M)
    query = tile * BLOCK_Q + m // GROUP
    kept = (m < BLOCK_Q * GROUP) & (query < query_len)
    head = kv_head * GROUP + m % GROUP
    # Rows that are not there stay at the last query's position, so that they ask for no more keys.
    first_position = context_len - query_len + tile * BLOCK_Q
    last_position = tl.minimum(first_position + BLOCK_Q, context_len) - 1
    position = tl.minimum(context_len - query_len + query, last_position)

    d = tl.arange(0, D_PADDED)[None, :]
    row = (first_row + query).to(tl.int64)
    q_at = row[:, None] * q_stride + head[:, None] * q_head_stride + d
    mask = kept[:, None] & (d < D)
    tile_q = tl.load(q + q_at, mask=mask, other=0.0)
    slope = tl.zeros((BLOCK_M,), tl.float32)
    if HAS_ALIBI:
        slope = tl.load(slopes + head, mask=kept, other=0.0)

    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
    end = last_position + 1
    if IS_SPLIT:
        share = tl.cdiv(tl.cdiv(end - begin, BLOCK_N), num_splits) * BLOCK_N
        begin = begin + split * share
        end = tl.minimum(begin + share, end)

    acc = tl.zeros((BLOCK_M, D_PADDED), tl.float32)
    greatest = tl.full((BLOCK_M,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    table = block_tables + seq.to(tl.int64) * table_stride
    of_head = kv_head * D
    key_scales += kv_head
    value_scales += kv_head
    keys += of_head
    values += of_head
    if IS_DECODE:
        # Memory is all that counts: masks are cheap, and one loop loads ahead from first tile to last.
        acc, greatest, total = _attend(
            acc, greatest, total, tile_q, position, slope, begin, end, context_len, table,
            keys, values, key_scales, value_scales, scale, soft_cap, window,
            KV_HEADS, D, D_PADDED, BLOCK_SIZE, BLOCK_N, IS_FP8, HAS_NATIVE_FP8,
            HAS_WINDOW, HAS_CAP, HAS_ALIBI, True,
        )  # fmt: skip
    else:
        seen_by_all = tl.maximum((first_position + 1) // BLOCK_N * BLOCK_N, begin)
        if HAS_WINDOW:
            in_all_windows = tl.cdiv(tl.maximum(last_position - window + 1, 0), BLOCK_N) * BLOCK_N
            in_all_windows = tl.minimum(in_all_windows, seen_by_all)
            acc, greatest, total = _attend(
                acc, greatest, total, tile_q, position, slope, begin, in_all_windows, context_len, table,
                keys, values, key_scales, value_scales, scale, soft_cap, window,
                KV_HEADS, D, D_PADDED, BLOCK_SIZE, BLOCK_N, IS_FP8, HAS_NATIVE_FP8,
                HAS_WINDOW, HAS_CAP, HAS_ALIBI, True,
            )  # fmt: skip
            begin = in_all_windows
        acc, greatest, total = _attend(
            acc, greatest, total, tile_q, position, slope, begin, seen_by_all, context_len, table,
            keys, values, key_scales, value_scales, scale, soft_cap, window,
            KV_HEADS, D, D_PADDED, BLOCK_SIZE, BLOCK_N, IS_FP8, HAS_NATIVE_FP8,
            HAS_WINDOW, HAS_CAP, HAS_ALIBI, False,
        )  # fmt: skip
        acc, greatest, total = _attend(
            acc, greatest, total, tile_q, position, slope, seen_by_all, end, context_len, table,
            keys, values, key_scales, value_scales, scale, soft_cap, window,
            KV_HEADS, D, D_PADDED, BLOCK_SIZE, BLOCK_N, IS_FP8, HAS_NATIVE_FP8,
            HAS_WINDOW, HAS_CAP, HAS_ALIBI, True,
        )  # fmt: skip

    # Without a key, as in the padding of a graph, the sum is 0 and so is the result.
    divisor = tl.where(total == 0.0, 1.0, total)
    result = acc / divisor[:, None]
    if IS_SPLIT:
        at = (seq.to(tl.int64) * HEADS + head) * num_splits + split
        log = tl.where(total == 0.0, float("-inf"), greatest + tl.log2(divisor))
        tl.store(partial_log + at, log, mask=kept)
        if begin < end:
            tl.store(partial + at[:, None] * D + d, result, mask=mask)
    else:
        at = (row * HEADS + head)[:, None] * D + d
        tl.store(out + at, result.to(out.dtype.element_ty), mask=mask)
