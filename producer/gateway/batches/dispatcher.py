"""Which batches this gateway drives: those that are open and that nobody else has.

Every gateway looks into the storage every other second and tries to take what it finds. A gateway that dies
is replaced when its lease is over; one that stops lets go of its batches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from penstock.errors import BatchTaken, ServerUnavailable
from producer.gateway.batches.life import Life
from producer.gateway.batches.works import Works
from producer.threads import in_thread

LOOK_S: Final = 2.0
SWEEP_S: Final = 60.0
AGAIN_S: Final = 5.0
"""Pause before a batch that failed for a reason of the gateway's own is tried again."""
MAX_LIVES: Final = 64
"""Batches that one gateway drives at once; the others wait, oldest first."""
MAX_OF_TENANT: Final = 16
"""Of one tenant's: the others' need not wait until its own have ended."""

log = logging.getLogger(__name__)


class Dispatcher:
    """Drives batches as long as the context lasts."""

    def __init__(self, works: Works) -> None:
        self.works = works
        self._lives: dict[str, tuple[Life, asyncio.Task[None]]] = {}
        self._tenants: dict[str, str] = {}
        """Whose batches are, of those that are open."""
        self._not_before: dict[str, float] = {}
        self._taken_at: dict[str, float] = {}
        """When another was seen to have a batch; what was seen last is tried last."""
        self._wake = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._loops = [asyncio.create_task(self._run()), asyncio.create_task(self._keep_clean())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending = [*self._loops, *(task for _, task in self._lives.values())]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def look(self, batch_id: str) -> None:
        """Something about a batch has changed: it is there, or is to be cancelled."""
        if (found := self._lives.get(batch_id)) is not None:
            found[0].look()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._start_lives()
            except Exception:
                log.exception("the storage of files and batches can't be looked through")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_S)

    async def _keep_clean(self) -> None:
        """Beside the other loop: where there are many files, far away, a look through them takes long."""
        while True:
            try:
                await in_thread(self._sweep)
            except Exception:
                log.exception("the storage of files can't be swept")
            await asyncio.sleep(SWEEP_S)

    async def _start_lives(self) -> None:
        open_batches = await in_thread(self.works.batches.open_batches)
        self._forget_all_but(set(open_batches))
        open_batches.sort(key=lambda one: self._taken_at.get(one, 0.0))
        driven = Counter(self._tenants[one] for one in self._lives if one in self._tenants)
        for batch_id in open_batches:
            if len(self._lives) >= MAX_LIVES:
                return
            if batch_id in self._lives or self._not_before.get(batch_id, 0.0) > time.monotonic():
                continue
            tenant = await self._tenant_of(batch_id)
            if tenant is not None and driven[tenant] < MAX_OF_TENANT:
                driven[tenant] += 1
                life = Life(self.works, tenant, batch_id)
                self._lives[batch_id] = life, asyncio.create_task(self._live(life, batch_id))

    def _forget_all_but(self, open_batches: set[str]) -> None:
        self._tenants = {one: tenant for one, tenant in self._tenants.items() if one in open_batches}
        self._not_before = {one: at for one, at in self._not_before.items() if one in open_batches}
        self._taken_at = {one: at for one, at in self._taken_at.items() if one in open_batches}

    async def _tenant_of(self, batch_id: str) -> str | None:
        if batch_id not in self._tenants:
            tenant = await in_thread(self.works.batches.tenant_of, batch_id)
            if tenant is None:
                return None
            self._tenants[batch_id] = tenant
        return self._tenants[batch_id]

    async def _live(self, life: Life, batch_id: str) -> None:
        try:
            await life.run()
        except BatchTaken:
            self._taken_at[batch_id] = time.monotonic()
        except ServerUnavailable as error:
            log.warning("batch %s waits for the server: %s", batch_id, error)
            self._not_before[batch_id] = time.monotonic() + LOOK_S
        except Exception:
            log.exception("batch %s can't go on now; it is tried again", batch_id)
            self._not_before[batch_id] = time.monotonic() + AGAIN_S
        finally:
            del self._lives[batch_id]

    def _sweep(self) -> None:
        used = self.works.batches.files_used()
        self.works.files.sweep(lambda file_id: file_id in used)
