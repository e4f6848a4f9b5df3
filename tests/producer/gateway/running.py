"""A gateway on a port of its own, as a program would run it, in this process's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from penstock.telemetry.tracing import Tracing
from producer.gateway.app import make_app
from producer.gateway.serve import GatewayServer, listen, url_of
from producer.gateway.settings import GatewaySettings


@asynccontextmanager
async def serving(
    redis_url: str, folder: Path, tracing: Tracing | None = None, **settings: Any
) -> AsyncIterator[str]:
    """The gateway's URL while it runs."""
    made = GatewaySettings(redis=redis_url, folder=folder, port=0, **settings)
    server = GatewayServer(make_app(made, tracing), made)
    taken = listen(made)
    url = url_of(made, taken)
    running = asyncio.create_task(server.run(taken))
    started = asyncio.create_task(server.started())
    try:
        await asyncio.wait((running, started), return_when=asyncio.FIRST_COMPLETED)
        assert started.done(), "the gateway did not start"
        yield url
    finally:
        started.cancel()
        server.stop()
        await running
