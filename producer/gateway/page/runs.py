"""Batches that the gateway does not drive, of `penstock run` and of clients: what consumers have rows of.

No list of them is kept anywhere. A consumer's oldest job names the batch that it is a row of, and the batch's
counts are on the server for as long as the batch is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from penstock.batch import Batch, BatchCounts
from penstock.keys import JOB, JobId, Keys
from penstock.link import Link
from penstock.messages import decode_labels
from producer.gateway.batches.objects import is_batch_id
from producer.gateway.page.progress import Progress

MAX_RUNS: Final = 10
MAX_SAMPLED: Final = 8
"""Jobs that are looked into at once: each may have megabytes."""
KEPT_S: Final = 30.0
"""A run of which no row was seen for so long is left out."""


class RunView(Struct, frozen=True, kw_only=True):
    """One of them."""

    batch_id: str
    counts: BatchCounts
    rows_per_s: float | None
    left_s: float | None
    """How long it will take from now on, at its pace."""

    @property
    def num_ended(self) -> int:
        """Rows."""
        return self.counts.completed + self.counts.failed


class _Seen(Struct):
    progress: Progress
    at_s: float


class RunWatch:
    """Finds them, and remembers how fast they go."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._seen: dict[str, _Seen] = {}

    async def read(self, jobs: Iterable[JobId]) -> list[RunView]:
        """Runs that these jobs are rows of, or were a while ago, by name.

        Raises:
            ServerError: the server can't be asked.
        """
        now_s = time.monotonic()
        for job_id in list(jobs)[:MAX_SAMPLED]:
            batch_id = await self._batch_of(job_id)
            if batch_id is not None and not is_batch_id(batch_id):
                self._seen.setdefault(batch_id, _Seen(Progress(), now_s)).at_s = now_s
        views: list[RunView] = []
        for batch_id in sorted(self._seen)[:MAX_RUNS]:
            counts = await Batch(self._link, self._keys, batch_id).counts()
            seen = self._seen[batch_id]
            if not counts.total or now_s - seen.at_s > KEPT_S:
                del self._seen[batch_id]
            else:
                views.append(_view(batch_id, counts, seen.progress, now_s))
        return views

    async def _batch_of(self, job_id: JobId) -> str | None:
        stream = self._keys.jobs(job_id.lane)
        found = await self._link.command("XRANGE", stream, job_id.entry, job_id.entry)
        if not found:
            return None
        flat: list[bytes] = found[0][1]
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        return decode_labels(fields.get(JOB.encode(), b"")).batch


def _view(batch_id: str, counts: BatchCounts, progress: Progress, now_s: float) -> RunView:
    num_ended = counts.completed + counts.failed
    progress.add(now_s, num_ended)
    pace = progress.per_s
    left = None if counts.expected is None else max(counts.expected - num_ended, 0)
    return RunView(
        batch_id=batch_id,
        counts=counts,
        rows_per_s=pace,
        left_s=None if left is None or pace is None else left / pace,
    )
