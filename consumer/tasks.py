"""The consumer's loops as one thing: none outlives the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self


class Tasks:
    """Tasks that run beside the body: none outlives it, and what one raises ends it."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, loop: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a loop."""
        task = asyncio.create_task(loop)
        self._tasks.append(task)
        return task

    async def unless(self, event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
        """Await `work`; False where the event came first. What a loop raises meanwhile is raised here."""
        own: list[asyncio.Task[Any]] = [asyncio.create_task(work), asyncio.create_task(event.wait())]
        try:
            loops = [task for task in self._tasks if not task.done()]
            done, _ = await asyncio.wait([*own, *loops], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
            return own[0] in done
        finally:
            for task in own:
                task.cancel()
            await asyncio.gather(*own, return_exceptions=True)
