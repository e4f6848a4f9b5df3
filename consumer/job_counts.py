"""How many jobs ended here and how long they took: for heartbeats, so counted whether or not anyone looks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from consumer.lease import Ending


class JobCounts:
    """Sums that never go back."""

    def __init__(self) -> None:
        self.num_ended = 0
        """Jobs whose end this consumer has written, failed ones included."""
        self.queue_s = 0.0
        """Seconds between their enqueue and the claim after which they ended here."""
        self.e2e_s = 0.0
        """Seconds between their enqueue and their written end."""

    def ended(self, endings: Sequence[Ending]) -> None:
        """The ends of these jobs are written."""
        now = time.monotonic()
        self.num_ended += len(endings)
        for ending in endings:
            waited_s = ending.lease.waited_ms / 1000
            self.queue_s += waited_s
            self.e2e_s += waited_s + now - ending.lease.claimed_at
