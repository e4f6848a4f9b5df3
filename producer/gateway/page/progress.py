"""How fast something goes whose end is known."""

from __future__ import annotations

from collections import deque
from typing import Final

PACE_S: Final = 60.0
"""A pace is that of so many seconds."""
LEAST_S: Final = 5.0


class Progress:
    """Counts of what has ended, as they are seen."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, num_ended: int) -> None:
        """So many have ended by this monotonic moment."""
        self._seen.append((now_s, num_ended))
        while now_s - self._seen[0][0] > PACE_S:
            self._seen.popleft()

    @property
    def per_s(self) -> float | None:
        """How many end in a second; None where it has not been watched for long enough, or none ended."""
        first, last = self._seen[0], self._seen[-1]
        seconds, ended = last[0] - first[0], last[1] - first[1]
        return ended / seconds if seconds >= LEAST_S and ended > 0 else None
