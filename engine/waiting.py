"""The waiting queue: sequences in order of arrival, and which of them to look at first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice

from engine.sequence import Sequence


class WaitingQueue:
    """Looks ahead over the first `window` sequences.

    Those that find their beginning in the cache go first: later it may be evicted. At the end of a backlog
    the longest go first, so that none is left to run alone. The first in the queue is overtaken `window`
    times at most, and then nobody starts before it; as everyone gets to be the first, nobody starves.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._order: OrderedDict[Sequence, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._order)

    def append(self, seq: Sequence) -> None:
        self._order[seq] = None

    def append_first(self, seq: Sequence) -> None:
        """It has run before, and arrived before all that wait."""
        self._order[seq] = None
        self._order.move_to_end(seq, last=False)

    def remove(self, seq: Sequence) -> None:
        del self._order[seq]

    def start(self, seq: Sequence) -> None:
        """Takes it out, for it runs now, and counts whom it overtook."""
        first = next(iter(self._order))
        if first is not seq:
            first.num_overtaken += 1
        del self._order[seq]

    def is_due(self, seq: Sequence) -> bool:
        """Whether it has been overtaken often enough."""
        return seq.num_overtaken >= self._window

    def candidates(self, is_known: Callable[[bytes | None], bool], backlog_ends: bool) -> Iterator[Sequence]:
        """Those to start, best first. `start` may take out the one that came last."""
        first = next(iter(self._order), None)
        if first is not None and self.is_due(first):
            yield first
            return
        window = list(islice(self._order, self._window))
        if backlog_ends and len(window) == len(self._order):
            yield from sorted(window, key=lambda seq: -seq.num_left)
            return
        unknown: list[Sequence] = []
        for seq in window:
            if is_known(seq.first_hash):
                yield seq
            else:
                unknown.append(seq)
        yield from unknown
