"""Server-sent events as they are on the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from msgspec import Struct


class Frame(Struct, frozen=True):
    """One event."""

    id: str | None
    data: str

    @property
    def json(self) -> Any:
        """The data, where it is not `[DONE]`."""
        return json.loads(self.data)


async def frames_of(reply: httpx.Response) -> AsyncIterator[Frame]:
    """The events of a reply as they come, without comments."""
    event_id: str | None = None
    async for line in reply.aiter_lines():
        if line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif line.startswith("data: "):
            yield Frame(event_id, line.removeprefix("data: "))
            event_id = None


async def read_frames(
    http: httpx.AsyncClient, path: str, request: dict[str, Any], *, after: str | None = None
) -> list[Frame]:
    """All events of a streamed request, from behind one on where one is named."""
    headers = {} if after is None else {"Last-Event-ID": after}
    async with http.stream("POST", path, json=request, headers=headers) as reply:
        assert reply.status_code == 200, await reply.aread()
        return [frame async for frame in frames_of(reply)]
