"""Sampling where filters leave many of many tokens: one row on its own, in time linear in the vocabulary.

Sorting 150,000 logits takes torch some 13 ms. Here they are only dealt into buckets by distance from the
best; the bucket in which top_p's bound lies is the only one that is sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[tuple[int], np.dtype[np.floating[Any]]]

NUM_BUCKETS = 4096
DEEPEST = 32.0
"""Logits further below the best share the last bucket: together they weigh less than a float32 can tell."""


def sample_wide(scaled: Floats, uniform: float, filters: tuple[int, float, float]) -> int:
    """One token id. scaled: [V] float32, logits over temperature; filters: top_k (0: all), top_p, min_p."""
    top_k, top_p, min_p = filters
    best = scaled.max()
    bound = np.float32(-np.inf)
    if min_p > 0:
        bound = best + np.log(np.float32(min_p))
    if top_k > 0:
        bound = max(bound, np.partition(scaled, len(scaled) - top_k)[len(scaled) - top_k])
    ids = np.flatnonzero(scaled >= bound)
    kept = scaled[ids]
    weights = np.exp(kept - best)
    if top_p < 1:
        chosen = kept >= _top_p_bound(kept, weights, best, top_p)
        ids, weights = ids[chosen], weights[chosen]
    cdf = weights.cumsum(dtype=np.float64)
    place = np.searchsorted(cdf, uniform * cdf[-1], side="right")
    return int(ids[min(place, len(ids) - 1)])


def _top_p_bound(kept: Floats, weights: Floats, best: np.floating[Any], top_p: float) -> np.floating[Any]:
    """The least logit whose more probable tokens weigh less than top_p of all that is kept."""
    depth = min(float(best - kept.min()), DEEPEST)
    per_unit = np.float32(NUM_BUCKETS / max(depth, 1e-3))
    # Subtraction and product are monotone as rounded, so a bucket's logits are all above the next one's.
    bucket = np.minimum((best - kept) * per_unit, NUM_BUCKETS - 1).astype(np.int64)
    cumulative = np.bincount(bucket, weights, NUM_BUCKETS).cumsum()
    needed = top_p * cumulative[-1]
    holder = int(np.searchsorted(cumulative, needed))
    before = cumulative[holder - 1] if holder > 0 else 0.0
    candidates = np.sort(kept[bucket == holder])[::-1]
    more = before + np.exp(candidates - best).cumsum(dtype=np.float64)
    return candidates[min(int(np.searchsorted(more, needed)), len(candidates) - 1)]
