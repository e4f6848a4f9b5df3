"""The two threads that turn text into tokens and tokens into text, off the event loop.

Two, so that a long prompt at admission does not hold up the text of what is running. A `RunningJob` is made
by the first and from then on touched by the second only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from consumer.lease import Ending, Lease, Progress
from consumer.running import Admission, EngineRefused, JobRefused, RunningJob, Served
from engine.request import Output
from penstock.messages import Error

log = logging.getLogger(__name__)

T = TypeVar("T")

Published = Mapping[str, Sequence[tuple[str, bytes]]]
"""By request id, what earlier runs of a job published: (event id, event JSON)."""


class TokenizerThreads:
    """Work awaited from the event loop; each thread does its own in the order in which it was asked for."""

    def __init__(self, coalesce_ms: int) -> None:
        self._interval_s = coalesce_ms / 1000
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encoding")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decoding")

    async def load(self, work: Callable[[], T]) -> T:
        """Load a tokenizer."""
        return await _run(self._encoding, work)

    async def admit(
        self, served: Served, leases: Sequence[Lease], published: Published
    ) -> tuple[list[RunningJob], list[Ending]]:
        """Running jobs for the leases that can run, `failed` endings for the others."""
        return await _run(self._encoding, lambda: _admit(Admission(served), leases, published))

    async def digest(
        self, outputs: Sequence[tuple[RunningJob, Output]]
    ) -> tuple[list[Progress], list[tuple[RunningJob, Ending]]]:
        """Turn a step's outputs into events: endings, and progress of what streams and is due."""
        now = asyncio.get_running_loop().time()
        return await _run(self._decoding, lambda: _digest(outputs, now, self._interval_s))

    def close(self) -> None:
        """Drop what has not begun."""
        for executor in (self._encoding, self._decoding):
            executor.shutdown(wait=False, cancel_futures=True)


async def _run(executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(executor, work)


def _admit(
    admission: Admission, leases: Sequence[Lease], published: Published
) -> tuple[list[RunningJob], list[Ending]]:
    jobs: list[RunningJob] = []
    endings: list[Ending] = []
    for lease in leases:
        try:
            jobs.append(admission.admit(lease, published.get(lease.request_id, ())))
        except JobRefused as refused:
            endings.append(refused.ending)
        except Exception as error:  # whatever is wrong with one job must not end the others
            log.exception("internal error in the admission of job %s", lease.key)
            endings.append(admission.broken(lease, error))
    return jobs, endings


def _digest(
    outputs: Sequence[tuple[RunningJob, Output]], now: float, interval_s: float
) -> tuple[list[Progress], list[tuple[RunningJob, Ending]]]:
    progress: list[Progress] = []
    ended: list[tuple[RunningJob, Ending]] = []
    for job, output in outputs:
        if job.finished:
            continue  # behind a stop string
        try:
            job.add(output)
            if job.finished:
                ended.append((job, job.ending()))
            elif job.job.stream and now >= job.next_progress_at and (event := job.take_progress()):
                job.next_progress_at = now + interval_s
                progress.append(event)
        except EngineRefused as error:
            ended.append((job, job.failure(Error(type="engine_error", message=str(error)))))
        except Exception as error:  # whatever is wrong with one job must not end the others
            log.exception("internal error in job %s", job.lease.key)
            ended.append((job, job.failure(Error(type="engine_error", message=f"internal error: {error!r}"))))
    return progress, ended
