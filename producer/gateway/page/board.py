"""Renders the overview's parts once a second while somebody watches, once for everybody who does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from msgspec import Struct

from penstock.errors import ServerError
from producer.gateway.page.history import SAMPLE_S, History
from producer.gateway.page.overview import OverviewReader
from producer.gateway.page.rendering import render
from producer.gateway.served import Served

TICK_S: Final = 1.0
PARTS: Final = ("summary", "charts", "lanes", "consumers", "batches", "letters")
"""Each is a template, and an event of the page's stream."""

log = logging.getLogger(__name__)


class Part(Struct, frozen=True):
    """One part of the overview as it was rendered last."""

    html: str
    version: int
    """Of the board, at which it last changed."""


class Board:
    """The overview. Use it as a context: it takes samples for the charts whether or not anybody watches."""

    def __init__(self, reader: OverviewReader, history: History, served: Served) -> None:
        self._reader = reader
        self._history = history
        self._served = served
        self._parts: dict[str, Part] = {}
        self._version = 0
        self._rendered_at = -TICK_S
        self._rendering = asyncio.Lock()
        self._changed = asyncio.Event()
        self._soon = asyncio.Event()
        self._num_watchers = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._sample()), asyncio.create_task(self._tick())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def look(self) -> None:
        """Something was changed by hand: render anew at once."""
        self._rendered_at = -TICK_S
        self._soon.set()

    async def parts(self) -> Mapping[str, str]:
        """Every part by its name, no older than a second."""
        await self._render()
        return {name: part.html for name, part in self._parts.items()}

    async def changes(self) -> AsyncGenerator[dict[str, str]]:
        """What has changed, as it does: at first everything. Who is slow to ask misses what lies between."""
        seen = 0
        self._num_watchers += 1
        self._soon.set()
        try:
            await self._render()
            while True:
                changed = self._changed
                new = {name: part.html for name, part in self._parts.items() if part.version > seen}
                seen = self._version
                if new:
                    yield new
                else:
                    await changed.wait()
        finally:
            self._num_watchers -= 1

    async def _tick(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), TICK_S if self._num_watchers else None)
            self._soon.clear()
            if self._num_watchers:
                try:
                    await self._render()
                except Exception:
                    log.exception("the page can't be rendered")

    async def _sample(self) -> None:
        while True:
            # Nothing is known of a moment at which the server can't be asked: its heartbeats may be gone.
            with suppress(ServerError):
                self._history.add(time.monotonic(), await self._served.consumers())
            await asyncio.sleep(SAMPLE_S)

    async def _render(self) -> None:
        async with self._rendering:
            if time.monotonic() - self._rendered_at < TICK_S * 0.9:
                return
            self._rendered_at = time.monotonic()
            overview = await self._reader.read()
            version = self._version + 1
            for name in PARTS:
                html = render(name, overview=overview)
                if name not in self._parts or self._parts[name].html != html:
                    self._parts[name] = Part(html, version)
            self._version = version
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
