"""A histogram as Prometheus counts one, in plain numbers: without locks, and many equal values at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Tally:
    """How many values fell below each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Empty. `bounds` are inclusive and rise; a last one without limit is added."""
        self._bounds = list(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0
        """Sum of all values."""

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def add(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self.total += value * count

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Bound as text, and how many values are not above it."""
        found: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip([*map(_text, self._bounds), "+Inf"], self._counts, strict=True):
            below += count
            found.append((bound, below))
        return found


def _text(bound: float) -> str:
    return repr(float(bound))
