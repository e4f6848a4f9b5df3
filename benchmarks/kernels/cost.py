"""What each operation moves and computes at the least: every input read once, every output written once.

Pure arithmetic on sizes. `e` is the bytes of an element of activations and weights, norm weights are float32
and left out, as they stay in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

LOGIT_BYTES = 4
SCALE_BYTES = 4
ROTARY_BYTES = 4
SLOT_BYTES = 8


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    num_bytes: float
    flops: float = 0.0
    """Of matrix products alone: the rest rides along."""


def elementwise(rows: int, width: int, e: int, tensors: int) -> Cost:
    """`tensors` matrices [rows, width] read or written: 4 for add + norm, 2 for a norm, 3 for a gate."""
    return Cost(rows * width * e * tensors)


def linear(rows: int, k: int, n: int, e: int) -> Cost:
    """y = x · Wᵀ."""
    return Cost((n * k + rows * k + rows * n) * e, 2.0 * rows * n * k)


def kv_bytes(kv_heads: int, head_dim: int, cache_e: int) -> int:
    """A token's key and value in one layer; a byte an element is FP8, with a scale for each head."""
    return 2 * kv_heads * (head_dim * cache_e + (SCALE_BYTES if cache_e == 1 else 0))


def rotate_and_store(tokens: int, heads: int, kv_heads: int, head_dim: int, e: int, cache_e: int) -> Cost:
    """Projections in, queries and cache out, cosines and sines and a slot for each token."""
    read = (heads + 2 * kv_heads) * head_dim * e + head_dim * ROTARY_BYTES + SLOT_BYTES
    return Cost(tokens * (read + heads * head_dim * e + kv_bytes(kv_heads, head_dim, cache_e)))


def store_kv(tokens: int, kv_heads: int, head_dim: int, e: int, cache_e: int) -> Cost:
    """Keys and values in, cache out."""
    moved = 2 * kv_heads * head_dim * e + kv_bytes(kv_heads, head_dim, cache_e) + SLOT_BYTES
    return Cost(tokens * moved)


def attention(
    lengths: list[tuple[int, int]], heads: int, kv_heads: int, head_dim: int, e: int, cache_e: int
) -> Cost:
    """lengths: queries and context of each sequence. Its keys and values are read once; a query's products
    are with what it sees."""
    queries = sum(count for count, _ in lengths)
    moved = 2 * queries * heads * head_dim * e
    moved += sum(context for _, context in lengths) * kv_bytes(kv_heads, head_dim, cache_e)
    pairs = sum(count * (context - count) + count * (count + 1) // 2 for count, context in lengths)
    return Cost(moved, 4.0 * heads * head_dim * pairs)


def logits_read(rows: int, vocab: int) -> Cost:
    """Argmax, sampling, log-probabilities: the logits once, and next to nothing out."""
    return Cost(rows * vocab * LOGIT_BYTES)


def apply_bitmask(rows: int, vocab: int) -> Cost:
    """Bits in. Half of the tokens are masked at random, so that every sector of 32 bytes is written."""
    return Cost(rows * vocab / 8 + rows * vocab * LOGIT_BYTES)


def apply_penalties(pairs: int) -> Cost:
    """An index, a count and three penalties for each pair, and its logit's sector read and written."""
    return Cost(pairs * (8 + 4 * 4 + 2 * 32))


def moe(tokens: int, hidden: int, inner: int, num_experts: int, top_k: int, e: int) -> Cost:
    """The weights of the experts that at least one token has, of tokens that choose at random."""
    touched = num_experts * (1 - (1 - top_k / num_experts) ** tokens)
    weights = touched * 3 * hidden * inner * e
    return Cost(weights + 2 * tokens * hidden * e, 2.0 * tokens * top_k * 3 * hidden * inner)


def route(tokens: int, num_experts: int, top_k: int, e: int) -> Cost:
    """Router logits in; a probability and an id out."""
    return Cost(tokens * (num_experts * e + top_k * 12))


def uniform(rows: int) -> Cost:
    """Three numbers in, one out."""
    return Cost(rows * (3 * 8 + 4))
