"""Batches of all tenants as the page shows them: those under way, and the last that ended."""

from __future__ import annotations

import time
from typing import Final

from msgspec import Struct

from producer.gateway.batches.objects import ENDED, BatchObject
from producer.gateway.batches.store import BatchStore
from producer.gateway.errors import NotFound
from producer.gateway.page.progress import Progress
from producer.threads import in_thread

FRESH_S: Final = 1.0
LOOK_S: Final = 60.0
"""How often every tenant's folder is looked through for batches that another gateway brought to their end
between two readings."""
MAX_OPEN: Final = 20
MAX_ENDED: Final = 5


class BatchView(Struct, frozen=True, kw_only=True):
    """One batch."""

    tenant: str
    batch: BatchObject
    rows_per_s: float | None = None
    left_s: float | None = None
    """How long it will take from now on, at its pace."""

    @property
    def num_ended(self) -> int:
        """Rows."""
        return self.batch.request_counts.completed + self.batch.request_counts.failed

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return self.batch.status not in ENDED

    @property
    def ended_at(self) -> int | None:
        """Unix time."""
        batch = self.batch
        return batch.completed_at or batch.cancelled_at or batch.expired_at or batch.failed_at


class BatchWatch:
    """Reads them, and remembers how fast they go."""

    def __init__(self, store: BatchStore) -> None:
        self._store = store
        self._progress: dict[str, Progress] = {}
        self._ended: list[tuple[str, str]] = []
        """Batch and tenant, newest first."""
        self._told: list[tuple[str, str]] = []
        self._looked_at = -LOOK_S
        self._open: dict[str, str] = {}
        self._at = -FRESH_S
        self._found: list[BatchView] = []

    async def ended(self, tenant: str, batch: BatchObject) -> None:
        """This gateway has brought a batch to its end, perhaps before anybody saw it."""
        self._told = [*self._told, (batch.id, tenant)][-MAX_ENDED:]

    async def read(self) -> list[BatchView]:
        """Those under way, oldest first, then those that ended, newest first; no older than a second."""
        if time.monotonic() - self._at >= FRESH_S:
            told, self._told = self._told, []
            self._found = await in_thread(self._read, time.monotonic(), told)
            self._at = time.monotonic()
        return self._found

    def _read(self, now_s: float, told: list[tuple[str, str]]) -> list[BatchView]:
        tenants = {one: self._store.tenant_of(one) for one in self._store.open_batches()[:MAX_OPEN]}
        is_open = {one: tenant for one, tenant in tenants.items() if tenant is not None}
        if now_s - self._looked_at >= LOOK_S:
            self._ended += self._store.latest(MAX_ENDED + len(is_open))
            self._looked_at = now_s
        ended = sorted({*self._open.items(), *told, *self._ended} - set(is_open.items()), reverse=True)
        self._open, self._ended = is_open, ended[:MAX_ENDED]
        for batch_id in self._progress.keys() - is_open.keys():
            del self._progress[batch_id]
        found = [self._view(one, tenant, now_s) for one, tenant in (*is_open.items(), *self._ended)]
        return [view for view in found if view is not None]

    def _view(self, batch_id: str, tenant: str, now_s: float) -> BatchView | None:
        try:
            batch = self._store.find(tenant, batch_id).batch
        except NotFound:
            return None
        view = BatchView(tenant=tenant, batch=batch)
        if not view.is_open:
            return view
        progress = self._progress.setdefault(batch_id, Progress())
        progress.add(now_s, view.num_ended)
        pace = progress.per_s or _pace_so_far(batch, view.num_ended)
        left = batch.request_counts.total - view.num_ended
        return BatchView(
            tenant=tenant,
            batch=batch,
            rows_per_s=pace,
            left_s=left / pace if pace and batch.request_counts.total else None,
        )


def _pace_so_far(batch: BatchObject, num_ended: int) -> float | None:
    """Rows per second since the batch began."""
    if batch.in_progress_at is None or not num_ended:
        return None
    return num_ended / max(time.time() - batch.in_progress_at, 1.0)
