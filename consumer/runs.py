"""The jobs that run: from their admission to their end, through steps, deaths of the engine and deadlines.

All of it happens on the event loop; text is made in `TokenizerThreads`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from consumer.deadlines import Deadlines
from consumer.engine_counts import EngineCounts
from consumer.engine_host import EngineHost
from consumer.engine_process import EngineStartFailed
from consumer.failures import error_of
from consumer.lease import Ending, Lease, job_key
from consumer.observer import NOBODY, Observer
from consumer.publisher import Publisher
from consumer.quarantine import Quarantine
from consumer.running import TOO_LATE, RunningJob
from consumer.tokenizer_threads import TokenizerThreads
from engine.messages import Step
from engine.request import Request

_MAX_FRUITLESS_DEATHS = 8
"""Deaths of the engine in a row, with no job finished and no poison told from healthy jobs between them,
after which the consumer gives up."""


class Runs:
    """Running jobs by job id, what the engine is told of them, and what comes of them."""

    def __init__(
        self,
        engine: EngineHost,
        threads: TokenizerThreads,
        publisher: Publisher,
        max_engine_deaths: int,
        observer: Observer = NOBODY,
    ) -> None:
        """Nothing runs yet.

        Args:
            max_engine_deaths: a job that was in the engine at so many deaths ends, to blame or not.
        """
        self._engine = engine
        self._threads = threads
        self._publisher = publisher
        self._max_engine_deaths = max_engine_deaths
        self.observer = observer
        self._jobs: dict[str, RunningJob] = {}
        self._quarantine = Quarantine()
        self._deadlines = Deadlines()
        self._deaths_in_a_row = 0
        # Since somebody was blamed: so the engine runs what is healthy, and it was the job. Of an engine that
        # dies with whatever it is given, every job would be found to be the cause, and the whole queue fail.
        self._suspect_cleared = False
        self._num_waiting = 0
        self.counts = EngineCounts()
        """What the engine has done."""
        self._sooner = asyncio.Event()
        self.backlog_ended = False
        """Whether the engine knows that the queue holds no more for now."""
        self.has_room = asyncio.Event()
        """Set whenever there may be room for more jobs."""

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def held(self) -> list[Lease]:
        """Of the jobs that run, and of those whose ends are not written yet."""
        return [*(job.lease for job in self._jobs.values()), *self._publisher.unwritten]

    @property
    def num_rows(self) -> int:
        """How many of the engine's sequences they take."""
        return sum(job.num_rows for job in self._jobs.values())

    @property
    def engine_has_work(self) -> bool:
        """Whether some job is in the engine, and none only waits to be tried."""
        waiting = self._quarantine.waiting
        return any(key not in waiting for key in self._jobs)

    def room(self, lookahead: int) -> int:
        """For how many more sequences the engine has room soon."""
        served = self._engine.served
        if served is None or self._quarantine.active:
            return 0
        if self._jobs and self._num_waiting >= max(1, lookahead):
            return 0  # blocks are the bottleneck, not sequences
        return served.ready.max_num_seqs + lookahead - self.num_rows

    def engine_changed(self) -> None:
        """The engine is in another phase: there may be room."""
        self._num_waiting = 0
        self.has_room.set()

    def end_backlog(self) -> None:
        """The queue holds no more for now: the engine should know."""
        if not self.backlog_ended:
            self._engine.submit([], last=True)
            self.backlog_ended = True

    def start(self, jobs: Sequence[RunningJob], *, last: bool) -> None:
        """Run jobs that were just admitted. `last`: the queue holds no more for now."""
        for job in jobs:
            key = job.lease.key
            # This process may hold an older lease of the job, if it was too busy to renew it.
            if (earlier := self._jobs.get(key)) is not None:
                self.drop(earlier.lease)
            self._jobs[key] = job
            if job.deadline is not None:
                self._deadlines.add(key, job.deadline)
                self._sooner.set()
        self.observer.started(jobs)
        held = self._quarantine.active  # suspects are being tried: nobody else joins
        # What has failed before may be what kills engines: it joins alone.
        suspects = [job for job in jobs if held or job.lease.num_failures]
        if not held:
            fresh = [job.remaining() for job in jobs if not job.lease.num_failures]
            self._engine.submit(fresh, last=last)
            self.backlog_ended = last
        self._quarantine.join_later(job.lease.key for job in suspects)
        self._try_next_suspect()

    def refuse(self, endings: Sequence[Ending]) -> None:
        """End jobs that never ran."""
        self._publisher.hand_over([], endings)

    def drop(self, lease: Lease) -> None:
        """Stop running a job that is not ours any more, without a word to anyone."""
        job = self._run_of(lease.request_id)
        if job is not None:
            self._stop(job)

    def drop_key(self, key: str) -> RunningJob | None:
        """The same by the job's id; gives what was stopped."""
        if (job := self._jobs.get(key)) is not None:
            self._stop(job)
        return job

    async def follow(self) -> None:
        """Take the engine's steps for ever.

        Raises:
            EngineStartFailed: there is no engine any more.
        """
        async for step in self._engine.steps(self._engine_died, self._survivors):
            await self._take_step(step)

    async def expire(self) -> None:
        """End jobs at their deadlines, for ever; also those that only wait, in the engine or for it."""
        while True:
            self._sooner.clear()
            self._end_expired()
            at = self._deadlines.next_at
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else max(at - time.monotonic(), 0.001)):
                    await self._sooner.wait()

    async def checkpoint(self) -> None:
        """Publish what the jobs have, streamed or not, and wait until it and all ends are written."""
        self._publisher.hand_over(await self._threads.checkpoint(list(self._jobs.values())), [])
        await self._publisher.drained()

    async def ended(self) -> None:
        """Wait until nothing runs and all is written."""
        while self._jobs:
            self.has_room.clear()
            await self.has_room.wait()
        await self._publisher.drained()

    async def _take_step(self, step: Step) -> None:
        self._num_waiting = step.num_waiting
        self.counts.take(step)
        self._end_expired()
        outputs = [(job, out) for out in step.outputs if (job := self._run_of(out.request_id))]
        self.observer.stepped(outputs, self.counts)
        digest = await self._threads.digest(outputs)
        # A job cancelled, lost or expired while the thread was at work has nothing more to say.
        progress = [item for item in digest.progress if self._run_of(item.lease.request_id)]
        ended = [(job, ending) for job, ending in digest.ended if self._run_of(job.request.request_id)]
        self._engine.abort(digest.broken, digest.stopped)
        for job, ending in ended:
            self._forget(job, ending)
            self._deaths_in_a_row = 0
        self._publisher.hand_over(progress, [ending for _, ending in ended])
        if self._quarantine.survived({job.lease.key for job, _ in outputs}):
            self._suspect_cleared = True
        self._try_next_suspect()
        self.has_room.set()

    def _run_of(self, request_id: str) -> RunningJob | None:
        """The running job of this request; None where it has ended, or the request is an earlier run's."""
        job = self._jobs.get(job_key(request_id))
        return job if job is not None and job.request.request_id == request_id else None

    def _end_expired(self) -> None:
        for key in self._deadlines.take_expired(time.monotonic()):
            job = self._jobs[key]
            words = f"{TOO_LATE}: `deadline_s` is {job.job.deadline_s:g}"
            ending = job.failure(error_of("deadline_exceeded", words))
            self._stop(job, ending)
            self._publisher.hand_over([], [ending])

    def _engine_died(self) -> None:
        """Blame whom there is to blame.

        Raises:
            EngineStartFailed: it dies again and again, and nothing is ever finished.
        """
        self._deaths_in_a_row += 1
        self.counts.engine_died()
        self.backlog_ended = False  # nobody has told the next one
        blamed = self._quarantine.engine_died(self._jobs, self._max_engine_deaths)
        if blamed and self._suspect_cleared:
            self._deaths_in_a_row = 0
            self._suspect_cleared = False
        if self._deaths_in_a_row > _MAX_FRUITLESS_DEATHS:
            raise EngineStartFailed(
                f"the engine died {self._deaths_in_a_row} times in a row without finishing a job"
            )
        for key in blamed:
            job = self._jobs[key]
            ending = job.failure(error_of("engine_error", "the engine dies when it runs this job"))
            self._forget(job, ending)
            self._publisher.hand_over([], [ending])

    def _survivors(self) -> list[Request]:
        """Requests for a new engine: of suspects the next one, and all that are none."""
        self._quarantine.next_to_join()
        waiting = self._quarantine.waiting
        return [job.remaining() for key, job in self._jobs.items() if key not in waiting]

    def _try_next_suspect(self) -> None:
        if self._engine.served is None:
            return  # after the restart
        key = self._quarantine.next_to_join()
        if key is not None:
            self._engine.submit([self._jobs[key].remaining()])

    def _stop(self, job: RunningJob, ending: Ending | None = None) -> None:
        self._forget(job, ending)
        self._engine.abort([job.lease.request_id])
        self._try_next_suspect()
        self.has_room.set()

    def _forget(self, job: RunningJob, ending: Ending | None) -> None:
        self.observer.ended(job, ending)
        del self._jobs[job.lease.key]
        self._quarantine.forget(job.lease.key)
        self._deadlines.forget(job.lease.key)
