"""Trouble with the server, told once: a line when it begins, with its reason, and a line when it is over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from penstock.backoff import pauses
from penstock.errors import ServerError, ServerUnavailable

_SHORT_BLOCK_MS = 100

log = logging.getLogger(__name__)

T = TypeVar("T")


class Outage:
    """Whose calls are failing now. It is over when the last of them has worked again."""

    def __init__(self, on_unavailable: Callable[[], None]) -> None:
        """Begin well.

        Args:
            on_unavailable: called when an absent server, or a broken connection to it, is first met, and
                when that is over.
        """
        self._on_unavailable = on_unavailable
        self._failing: set[Hashable] = set()
        self._unavailable = False
        self._since = 0.0

    def failed(self, who: Hashable, error: ServerError) -> None:
        """Note that a call of `who` has failed; it will be repeated."""
        # Several loops meet the same trouble, again and again: one line is enough until it is over.
        log.log(logging.DEBUG if self._failing else logging.WARNING, "waiting for the server: %s", error)
        if not self._failing:
            self._since = time.monotonic()
        self._failing.add(who)
        if isinstance(error, ServerUnavailable) and not self._unavailable:
            self._unavailable = True
            self._on_unavailable()

    def worked(self, who: Hashable) -> None:
        """Note that a call of `who` has worked."""
        if who not in self._failing:
            return
        self._failing.remove(who)
        if not self._failing:
            log.warning("the server is well again, after %.1f s", time.monotonic() - self._since)
            self._came_back()

    def gave_up(self, who: Hashable) -> None:
        """Note that a call of `who` is not wanted any more, whether it works by now or not."""
        self._failing.discard(who)
        if not self._failing:
            self._came_back()

    def _came_back(self) -> None:
        if self._unavailable:
            self._unavailable = False
            self._on_unavailable()

    async def patiently(
        self, call: Callable[[], Awaitable[T]], trouble: type[ServerError] = ServerError
    ) -> T:
        """Call until it raises no `trouble`."""
        try:
            for pause in pauses():
                try:
                    reply = await call()
                except trouble as error:
                    self.failed(call, error)
                    await asyncio.sleep(pause)
                else:
                    self.worked(call)
                    return reply
        finally:
            self.gave_up(call)
        raise AssertionError("pauses never end")

    @property
    def lasts(self) -> bool:
        """Whether some call is failing now."""
        return bool(self._failing)

    def block_ms(self, wanted: int) -> int:
        """How long a read may block: only briefly while the trouble lasts, so that its end shows."""
        return min(wanted, _SHORT_BLOCK_MS) if self._failing else wanted
