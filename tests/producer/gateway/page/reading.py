"""The page's streams from a client's side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

HTML = {"Accept": "text/html"}
LIMIT_S = 20


class Parts:
    """What a browser would show: by event, the HTML that came last."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.now: dict[str, str] = {}
        self.names: list[str] = []

    async def until(self, holds: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """What is shown once this holds of it."""
        async with asyncio.timeout(LIMIT_S):
            while not holds(self.now):
                await self._event()
        return self.now

    async def _event(self) -> None:
        name, data = "", list[str]()
        async for line in self._lines:
            field, _, value = line.partition(": ")
            match field:
                case "event":
                    name = value
                case "data" | "data:":
                    data.append(value)
                case "" if name:
                    self.now[name] = "\n".join(data)
                    self.names.append(name)
                    return
                case _:
                    pass
        raise AssertionError(f"the stream ended; it had {self.names}")


@asynccontextmanager
async def watching(http: httpx.AsyncClient, path: str = "/page/events") -> AsyncIterator[Parts]:
    """A stream of the page."""
    async with http.stream("GET", path, timeout=LIMIT_S) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        yield Parts(reply.aiter_lines())
