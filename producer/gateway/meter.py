"""What callers have under way, against the limits of their keys."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from producer.gateway.caller import Caller


class Meter(Protocol):
    """Counts requests and queued tokens."""

    def admit(self, caller: Caller, tokens: int) -> AbstractAsyncContextManager[None]:
        """Room for a job of about so many tokens, prompt and output, held until the context ends.

        Raises on entering:
            TooMany: there is none; it says when to come back.
        """
        ...


class NoMeter:
    """No limits."""

    def admit(self, caller: Caller, tokens: int) -> AbstractAsyncContextManager[None]:
        """See `Meter.admit`."""
        return nullcontext()
