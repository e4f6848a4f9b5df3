"""Filters that leave many of many tokens: one row on its own, in time linear in the vocabulary.

Sorting 150,000 logits takes torch some 13 ms. Here they are only dealt into buckets by distance from the
best; the bucket in which a bound lies is the only one that is sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
Buckets = np.ndarray[tuple[int], np.dtype[np.int32]]

NUM_BUCKETS = 4096
DEEPEST = 32.0
"""Logits further below the best share the last bucket: together they weigh less than a float32 can tell."""


def wide_weights(scaled: Floats, filters: tuple[int, float, float], out: Floats) -> None:
    """Writes each token's weight, exp(logit - best), to `out`; 0 where the filters drop it.

    scaled, out: [V], logits over temperature; filters: top_k (0: all), top_p (1: all), min_p (0: all).
    """
    top_k, top_p, min_p = filters
    best = scaled.max()
    np.subtract(scaled, best, out=out)
    np.exp(out, out=out)
    bound = best + np.log(np.float32(min_p)) if min_p > 0 else np.float32(-np.inf)
    buckets = _buckets(scaled, best) if top_k > 0 or top_p < 1 else None
    if top_k > 0:
        assert buckets is not None
        bound = max(bound, _top_k_bound(scaled, buckets, top_k))
    if min_p > 0 or top_k > 0:
        np.multiply(out, scaled >= bound, out=out)
    if top_p < 1:
        assert buckets is not None
        bound = max(bound, _top_p_bound(scaled, buckets, out, top_p))
        np.multiply(out, scaled >= bound, out=out)


def _buckets(scaled: Floats, best: np.float32) -> Buckets:
    """[V]. Subtraction and product are monotone as rounded: a bucket's logits exceed the next one's."""
    depth = min(float(best - scaled.min()), DEEPEST)
    distance = best - scaled
    distance *= np.float32(NUM_BUCKETS / max(depth, 1e-3))
    return np.minimum(distance, np.float32(NUM_BUCKETS - 1), out=distance).astype(np.int32)


def _top_k_bound(scaled: Floats, buckets: Buckets, top_k: int) -> np.float32:
    """The k-th largest logit."""
    counts = np.bincount(buckets, minlength=NUM_BUCKETS).cumsum()
    holder = int(np.searchsorted(counts, top_k))
    before = int(counts[holder - 1]) if holder > 0 else 0
    return _ordered(scaled, buckets, holder)[top_k - before - 1]


def _top_p_bound(scaled: Floats, buckets: Buckets, weights: Floats, top_p: float) -> np.float32:
    """The least logit whose more probable tokens weigh less than top_p of all."""
    mass = np.bincount(buckets, weights, NUM_BUCKETS).cumsum()
    needed = top_p * mass[-1]
    holder = int(np.searchsorted(mass, needed))
    before = mass[holder - 1] if holder > 0 else 0.0
    candidates = _ordered(scaled, buckets, holder)
    more: np.ndarray[Any, np.dtype[np.float64]] = before + np.exp(candidates - scaled.max()).cumsum(
        dtype=np.float64
    )
    return candidates[min(int(np.searchsorted(more, needed)), len(candidates) - 1)]


def _ordered(scaled: Floats, buckets: Buckets, bucket: int) -> Floats:
    return np.sort(scaled[buckets == bucket])[::-1]
