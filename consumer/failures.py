"""Which failures are worth another attempt, and when it comes: policy, without I/O."""

from __future__ import annotations

import random
from typing import Final

from penstock.messages import Error

RETRYABLE: Final = frozenset({"engine_error"})
"""Error types that another attempt may not meet. All others would be the same wherever the job ran."""


def error_of(kind: str, message: str) -> Error:
    """An error of this type, one of `penstock.messages.ERROR_TYPES`."""
    return Error(type=kind, message=message, retryable=kind in RETRYABLE)


def retry_delay_ms(first_s: float, num_failures: int, longest_ms: int) -> int:
    """How long a job waits after it has failed, having failed `num_failures` times before.

    Exponential backoff with full jitter: anything up to `first_s` doubled with each failure, so that jobs
    that failed together do not return together (Brooker, "Exponential Backoff And Jitter", AWS 2015).
    """
    return int(random.uniform(0.0, min(first_s * 1000 * 2.0 ** min(num_failures, 30), longest_ms)))
