"""Whether a client is still there."""

from __future__ import annotations

from litestar.types import Receive


async def gone(receive: Receive) -> None:
    """Returns once the client has gone away; to be called when its body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
