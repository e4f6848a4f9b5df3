"""Times of many events in a few figures."""

from __future__ import annotations

from collections.abc import Sequence


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and worst, in milliseconds."""
    ordered = sorted(seconds)
    at = {"p50": len(ordered) // 2, "p99": len(ordered) * 99 // 100, "worst": len(ordered) - 1}
    return {name: round(ordered[index] * 1e3, 3) for name, index in at.items()}
