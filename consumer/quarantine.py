"""Who is to blame when the engine dies: policy, without I/O.

A first death may be chance: everybody is readmitted at once. Where jobs die a second time together, one of
them is poison, and they are suspects: readmitted one at a time, each having to survive a step before the next
joins. Whoever is joining when the engine dies is the poison, and ends; the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

_SUSPECT_AT = 2
"""Deaths at which a job becomes a suspect."""


class Quarantine:
    """Which jobs wait to be readmitted, and which one is being tried. Jobs are known by their keys."""

    def __init__(self) -> None:
        self._deaths: dict[str, int] = {}
        self._waiting: deque[str] = deque()
        self.joining: str | None = None
        """The suspect that has yet to survive a step."""

    @property
    def active(self) -> bool:
        """Whether suspects are being tried: nobody else joins meanwhile."""
        return self.joining is not None or bool(self._waiting)

    @property
    def waiting(self) -> frozenset[str]:
        """Who is not in the engine, as it is not their turn yet."""
        return frozenset(self._waiting)

    def engine_died(self, running: Iterable[str], limit: int) -> list[str]:
        """Take note of a death. Gives who ends: the poison, or those that saw `limit` unexplained deaths."""
        in_engine = [key for key in running if key not in self._waiting]
        if self.joining is not None:
            ended = [self.joining]
        else:
            for key in in_engine:
                self._deaths[key] = self._deaths.get(key, 0) + 1
            ended = [key for key in in_engine if self._deaths[key] >= limit]
        rest = [key for key in in_engine if key not in ended]
        if self.active or any(self._deaths.get(key, 0) >= _SUSPECT_AT for key in rest):
            self._waiting.extend(rest)
        for key in ended:
            self.forget(key)
        return ended

    def join_later(self, keys: Iterable[str]) -> None:
        """These jobs came while suspects were being tried: they wait their turn behind them."""
        self._waiting.extend(keys)

    def next_to_join(self) -> str | None:
        """The next suspect to try, once nobody else is joining; None where there is none."""
        if self.joining is None and self._waiting:
            self.joining = self._waiting.popleft()
            return self.joining
        return None

    def survived(self, keys: Container[str | None]) -> None:
        """These jobs were in a step that the engine lived through."""
        if self.joining in keys:
            self.joining = None

    def forget(self, key: str) -> None:
        """The job has ended, or is not ours any more."""
        self._deaths.pop(key, None)
        if key in self._waiting:
            self._waiting.remove(key)
        if key == self.joining:
            self.joining = None
