"""A gateway on a port of its own, as a program would run it, in this process's event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
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


@contextmanager
def serving_in_thread(redis_url: str, folder: Path) -> Iterator[str]:
    """The same in a thread's event loop, for clients that block."""
    ready: queue.Queue[str | None] = queue.Queue()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(ended.set))
        try:
            async with serving(redis_url, folder) as url:
                ready.put(url)
                await ended.wait()
        finally:
            ready.put(None)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        url = ready.get(timeout=20)
        assert url is not None, "the gateway did not start"
        yield url
    finally:
        for end in stop:
            end()
        thread.join(20)
