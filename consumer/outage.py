"""The server's outages, as all loops of a consumer meet them: waited out, and logged once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from penstock.backoff import pauses
from penstock.errors import ServerError, ServerUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")


class Outage:
    """Whether there is one, and what to do meanwhile."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        """Nothing has happened so far.

        Args:
            on_lost: called where the server does not answer.
        """
        self._on_lost = on_lost
        self._lasts = False

    def note(self, error: ServerError) -> None:
        """Take note of what a call has met."""
        # Several loops meet the same trouble, again and again: one line is enough until it is over.
        log.log(logging.DEBUG if self._lasts else logging.WARNING, "waiting for the server: %s", error)
        self._lasts = True
        if isinstance(error, ServerUnavailable):
            self._on_lost()

    def over(self) -> None:
        """The server does as it is told."""
        if self._lasts:
            self._lasts = False
            log.info("the server is well again")

    async def patiently(
        self, call: Callable[[], Awaitable[T]], trouble: type[ServerError] = ServerError
    ) -> T:
        """Call until it raises no `trouble`."""
        for pause in pauses():
            try:
                return await call()
            except trouble as error:
                self.note(error)
                await asyncio.sleep(pause)
        raise AssertionError("pauses never end")
