"""What a batch's driver has to say, in the log."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class LogNarrator:
    """See `producer.driven.Narrator`."""

    def __init__(self, batch_id: str) -> None:
        self._id = batch_id
        self._why: str | None = None

    def say(self, words: str) -> None:
        """See `Narrator`."""
        log.warning("batch %s: %s", self._id, words)

    def wait(self, why: str | None) -> None:
        """See `Narrator`."""
        if why is not None and why != self._why:
            log.info("batch %s waits: %s", self._id, why)
        self._why = why

    def moved(self) -> None:
        """See `Narrator`."""
