"""The one thread that turns text into tokens and tokens into text, off the event loop.

A `RunningJob`'s text is touched in here only.
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

_ADMITTED_AT_ONCE = 8
"""Jobs tokenized in one go: the outputs of a step wait no longer than that."""

Published = Mapping[str, Sequence[tuple[str, bytes]]]
"""By request id, what earlier runs of a job published: (event id, event JSON)."""


class TokenizerThread:
    """Work for the thread, awaited from the event loop; calls run in the order in which they were made."""

    def __init__(self, coalesce_ms: int) -> None:
        self._interval_s = coalesce_ms / 1000
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def admit(
        self, served: Served, leases: Sequence[Lease], published: Published
    ) -> tuple[list[RunningJob], list[Ending]]:
        """Running jobs for the leases that can run, `failed` endings for the others."""
        admission = Admission(served)
        jobs: list[RunningJob] = []
        endings: list[Ending] = []
        for start in range(0, len(leases), _ADMITTED_AT_ONCE):
            part = leases[start : start + _ADMITTED_AT_ONCE]
            more_jobs, more_endings = await self.run(lambda part=part: _admit(admission, part, published))
            jobs += more_jobs
            endings += more_endings
        return jobs, endings

    async def digest(
        self, outputs: Sequence[tuple[RunningJob, Output]]
    ) -> tuple[list[Progress], list[tuple[RunningJob, Ending]]]:
        """Turn a step's outputs into events: endings, and progress of what streams and is due."""
        now = asyncio.get_running_loop().time()
        return await self.run(lambda: _digest(outputs, now, self._interval_s))

    def close(self) -> None:
        """Drop what has not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)


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
