"""The two threads that turn text into tokens and tokens into text, off the event loop.

Two, so that a long prompt at admission does not hold up the text of what is running. A `RunningJob` is made
by the first and from then on touched by the second only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from msgspec import Struct

from consumer.admission import Admission, JobRefused
from consumer.failures import error_of
from consumer.lease import Ending, Lease, Progress
from consumer.running import EngineRefused, RunningJob
from consumer.served import Served
from engine.request import Output

log = logging.getLogger(__name__)

T = TypeVar("T")

Published = Mapping[str, Sequence[tuple[str, bytes]]]
"""By request id, what earlier runs of a job published: (event id, event JSON)."""


class Digest(Struct):
    """What became of a step's outputs."""

    progress: list[Progress] = []
    ended: list[tuple[RunningJob, Ending]] = []
    stopped: list[tuple[str, int]] = []
    """Request id and sample index: a stop string was found, and the engine has to be told."""
    broken: list[str] = []
    """Request ids of jobs that failed here while the engine still runs them."""


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

    async def digest(self, outputs: Sequence[tuple[RunningJob, Output]]) -> Digest:
        """Turn a step's outputs into events: endings, and the progress that is due."""
        now = time.monotonic()
        return await _run(self._decoding, lambda: _digest(outputs, now, self._interval_s))

    async def checkpoint(self, jobs: Sequence[RunningJob]) -> list[Progress]:
        """All that jobs can publish at this moment, whether they stream or not."""
        return await _run(self._decoding, lambda: _checkpoint(jobs))

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
            job = admission.admit(lease, published.get(lease.request_id, ()))
            if job.finished:  # all that was missing is its end
                endings.append(job.end()[1])
            else:
                jobs.append(job)
        except JobRefused as refused:
            endings.append(refused.ending)
        except Exception as error:  # whatever is wrong with one job must not end the others
            log.exception("internal error in the admission of job %s", lease.key, extra={"job": lease.key})
            endings.append(admission.broken(lease, error, published.get(lease.request_id, ())))
    return jobs, endings


def _digest(outputs: Sequence[tuple[RunningJob, Output]], now: float, interval_s: float) -> Digest:
    digest = Digest()
    by_job: dict[str, tuple[RunningJob, list[Output]]] = {}
    for job, output in outputs:
        if not job.finished:  # else it is behind a stop string
            by_job.setdefault(job.request.request_id, (job, []))[1].append(output)
    for request_id, (job, of_job) in by_job.items():
        try:
            for output in of_job:
                if job.add(output):
                    digest.stopped.append((request_id, output.sample))
            if job.finished:
                progress, ending = job.end()
                digest.progress += progress
                digest.ended.append((job, ending))
            else:
                digest.progress += job.due_progress(now, interval_s)
        except EngineRefused as error:
            digest.ended.append((job, job.failure(error_of(error.kind, str(error)))))
        except Exception as error:  # whatever is wrong with one job must not end the others
            log.exception("internal error in job %s", job.lease.key, extra={"job": job.lease.key})
            failed = error_of("engine_error", f"internal error: {error!r}")
            digest.ended.append((job, job.failure(failed)))
            digest.broken.append(request_id)
    return digest


def _checkpoint(jobs: Sequence[RunningJob]) -> list[Progress]:
    progress: list[Progress] = []
    for job in jobs:
        if job.finished:  # its end says it all
            continue
        try:
            progress += job.take_progress()
        except Exception:  # whoever takes it next generates it again
            key = job.lease.key
            log.exception("internal error in the checkpoint of job %s", key, extra={"job": key})
    return progress
