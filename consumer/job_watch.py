"""Where a job's time goes: wait, prefill, decode, commit. Kept only where somebody wants it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from consumer.engine_counts import EngineCounts
from consumer.lease import Ending, Lease, Progress
from consumer.observer import Observer
from consumer.running import RunningJob
from engine.request import Output

if TYPE_CHECKING:
    from consumer.broker import FailureOutcome


class JobTimes(Struct, kw_only=True):
    """One run of one job. Moments are monotonic, in seconds."""

    job: RunningJob
    started_at: float
    """Given to the engine."""
    first_at: float | None = None
    """Its first output came."""
    last_at: dict[int, float] = {}
    """By sample, the last output so far."""
    ended_at: float | None = None

    @property
    def lease(self) -> Lease:
        """Of this run."""
        return self.job.lease

    @property
    def enqueued_at(self) -> float:
        """When the job was put in, by the server's clock up to its claim and by ours from then on."""
        return self.lease.claimed_at - self.lease.waited_ms / 1000

    @property
    def last_output_at(self) -> float | None:
        """Of all samples."""
        return max(self.last_at.values(), default=None)


class Sink:
    """Takes what a `JobWatch` finds out. This one takes nothing."""

    def claimed(self, leases: Sequence[Lease]) -> None:
        """Jobs were claimed."""

    def stepped(self, counts: EngineCounts) -> None:
        """The engine has reported."""

    def first_output(self, times: JobTimes) -> None:
        """A job's first output has come."""

    def next_tokens(self, gap_s: float, count: int) -> None:
        """So many samples have a further token, all this long after the one before."""

    def published(self, num_events: int, num_checkpoints: int) -> None:
        """Events were written in one call; so many of them are checkpoints of jobs that do not stream."""

    def committed(self, num_ends: int) -> None:
        """Ends were written in one call; each is told of by `finished` as well."""

    def finished(self, ending: Ending, times: JobTimes | None, now: float) -> None:
        """A job's end was written. Without `times` it never ran here."""

    def failed(self, ending: Ending, times: JobTimes | None, outcome: FailureOutcome, now: float) -> None:
        """An attempt failed, and the server was told."""

    def dropped(self, times: JobTimes) -> None:
        """A job was cancelled, or its lease was lost, while it ran."""

    def lost(self) -> None:
        """A lease was lost."""


class JobWatch(Observer):
    """Keeps the times of the jobs that run here, and tells its sinks."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._running: dict[str, JobTimes] = {}
        self._ended: dict[str, JobTimes] = {}  # and not yet written

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def claimed(self, leases: Sequence[Lease]) -> None:
        for sink in self._sinks:
            sink.claimed(leases)

    def started(self, jobs: Sequence[RunningJob]) -> None:
        now = time.monotonic()
        for job in jobs:
            self._running[job.request.request_id] = JobTimes(job=job, started_at=now)

    def stepped(self, outputs: Sequence[tuple[RunningJob, Output]], counts: EngineCounts) -> None:
        now, running = time.monotonic(), self._running
        gaps: dict[float, int] = {}  # most samples had their last token in the same step
        for _, output in outputs:
            times = running.get(output.request_id)
            if times is None:
                continue
            last_at = times.last_at
            before = last_at.get(output.sample)
            last_at[output.sample] = now
            if before is not None:
                gaps[before] = gaps.get(before, 0) + 1
            elif times.first_at is None:
                times.first_at = now
                for sink in self._sinks:
                    sink.first_output(times)
        for sink in self._sinks:
            sink.stepped(counts)
            for before, count in gaps.items():
                sink.next_tokens(now - before, count)

    def ended(self, job: RunningJob, ending: Ending | None) -> None:
        times = self._running.pop(job.request.request_id, None)
        if times is None:
            return
        if ending is not None:
            times.ended_at = time.monotonic()
            self._ended[job.request.request_id] = times
            return
        for sink in self._sinks:
            sink.dropped(times)

    def published(self, progress: Sequence[Progress]) -> None:
        num_checkpoints = 0
        for item in progress:
            times = self._running.get(item.lease.request_id)
            num_checkpoints += times is not None and not times.job.job.stream
        for sink in self._sinks:
            sink.published(len(progress), num_checkpoints)

    def committed(self, endings: Sequence[Ending]) -> None:
        now = time.monotonic()
        for sink in self._sinks:
            sink.committed(len(endings))
        for ending in endings:
            times = self._ended.pop(ending.lease.request_id, None)
            for sink in self._sinks:
                sink.finished(ending, times, now)

    def failed(self, ending: Ending, outcome: FailureOutcome) -> None:
        now = time.monotonic()
        times = self._ended.pop(ending.lease.request_id, None)
        for sink in self._sinks:
            sink.failed(ending, times, outcome, now)

    def lost(self, lease: Lease) -> None:
        self._ended.pop(lease.request_id, None)  # of what runs, `ended` tells
        for sink in self._sinks:
            sink.lost()
