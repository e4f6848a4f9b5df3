"""Pauses between attempts to reach a server."""

from __future__ import annotations

import random
from collections.abc import Iterator


def pauses(first_s: float = 0.05, longest_s: float = 2.0) -> Iterator[float]:
    """Give seconds to wait, doubling up to `longest_s`; spread, so that clients don't return as one."""
    pause = first_s
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(pause * 2, longest_s)
