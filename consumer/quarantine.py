"""Who is to blame when the engine dies: policy, without I/O.

A first death may be chance: everybody is readmitted at once. Where jobs die a second time together, one of
them is poison, and they are suspects: readmitted one at a time, each having to survive some steps before the
next joins. Whoever is joining when the engine dies is tried once more, with nobody else in the engine; who
dies alone is the poison, and ends; the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

TRIAL_STEPS = 3
"""Steps with output that a suspect survives: what a prefill or a decode does shows in the first two."""
_SUSPECT_AT = 2
"""Deaths at which a job becomes a suspect."""


class Quarantine:
    """Which jobs wait to be readmitted, and which one is being tried. Jobs are known by their keys."""

    def __init__(self) -> None:
        self._deaths: dict[str, int] = {}
        self._waiting: deque[str] = deque()
        self._accused: set[str] = set()  # joined at a death, and others were there: to be tried alone
        self._num_survived = 0
        self.joining: str | None = None
        """The suspect that has yet to survive its first steps."""

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
        if (accused := self.joining) is not None:
            if len(in_engine) > 1 and accused not in self._accused:
                self._accused.add(accused)
                self._waiting.extendleft([accused])
                self._waiting.extend(key for key in in_engine if key != accused)
                self.joining = None
                return []
            ended = [accused]
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
            self._num_survived = 0
            return self.joining
        return None

    def survived(self, keys: Container[str | None]) -> bool:
        """These jobs were in a step that the engine lived through. Gives whether that clears a suspect."""
        if self.joining is None or self.joining not in keys:
            return False
        self._num_survived += 1
        if self._num_survived < TRIAL_STEPS:
            return False
        self._accused.discard(self.joining)
        self.joining = None
        return True

    def forget(self, key: str) -> None:
        """The job has ended, or is not ours any more."""
        self._deaths.pop(key, None)
        self._accused.discard(key)
        if key in self._waiting:
            self._waiting.remove(key)
        if key == self.joining:
            self.joining = None
