"""When jobs have to have ended: which of those that run are due, without I/O."""

from __future__ import annotations

import heapq

_SLACK = 64
"""Ended jobs that may lie in the heap beyond as many as run."""


class Deadlines:
    """Deadlines by key; times are monotonic, in seconds. An operation costs the logarithm of how many run."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # of these, and of some that were forgotten since

    @property
    def next_at(self) -> float | None:
        """The earliest; None where nobody has a deadline."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def add(self, key: str, at: float) -> None:
        """Watch a job, in the place of what was known of its key."""
        self._at[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._at) + _SLACK:
            self._heap = sorted((at, key) for key, at in self._at.items())

    def forget(self, key: str) -> None:
        """The job has ended, or is not ours any more."""
        self._at.pop(key, None)

    def take_expired(self, now: float) -> list[str]:
        """Those that are due, which are forgotten with that."""
        keys: list[str] = []
        while (at := self.next_at) is not None and at <= now:
            keys.append(self._heap[0][1])
            self.forget(keys[-1])
        return keys
