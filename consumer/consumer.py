"""One consumer: claims by credit, has the engine answer, publishes, renews, and drains when asked to.

Every loop below outlives the server's outages and the engine's deaths. The state that they share is
`_running`, by job id, changed on the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from consumer.broker import Broker
from consumer.engine_host import EngineHost
from consumer.engine_process import EngineStartFailed
from consumer.lease import Lease, job_key
from consumer.outage import Outage
from consumer.publisher import Publisher
from consumer.quarantine import Quarantine
from consumer.running import RunningJob
from consumer.settings import Settings
from consumer.tasks import Tasks
from consumer.tokenizer_threads import TokenizerThreads
from engine.messages import Step
from engine.request import Request
from penstock.backoff import pauses
from penstock.errors import PenstockError, ServerError, ServerUnavailable
from penstock.keys import Keys
from penstock.link import BLOCK_MS, Link
from penstock.messages import Error, Heartbeat
from penstock.pool import REPLY_TIMEOUT_S
from penstock.server import check_server

log = logging.getLogger(__name__)

T = TypeVar("T")

_IDLE_BLOCK_MS = 1_000
"""Longest wait for new jobs before expired leases are looked for again."""
_LEAVE_TIMEOUT_S = 5.0
_LEAST_REPLY_TIMEOUT_S = 1.0
_MAX_FRUITLESS_DEATHS = 8
"""Deaths of the engine in a row, with no job finished between them, after which the consumer gives up."""


class ModelDisagreement(PenstockError):
    """Another live consumer serves a different model on the same queue."""


class Consumer:
    """One consumer process. `run` until `stop` was called and everything is given back."""

    def __init__(self, settings: Settings, *, engine_command: Sequence[str] = ()) -> None:
        """Prepare; nothing is connected or started before `run`.

        Args:
            engine_command: replaces `python -m engine.process`, see `start_engine`.
        """
        self._settings = settings
        # A renewal that meets a connection which died without a word must have time for another one.
        reply_timeout_s = max(_LEAST_REPLY_TIMEOUT_S, min(REPLY_TIMEOUT_S, settings.lease_s / 3))
        self._link = Link(settings.redis, reply_timeout_s)
        name = f"{settings.stable_name}.{secrets.token_hex(4)}"
        self._broker = Broker(self._link, Keys(settings.shard), name, settings.lease_ms)
        self._outage = Outage(self._broker.connection_lost)
        self._publisher = Publisher(self._broker, self._drop, self._outage)
        self._threads = TokenizerThreads(settings.coalesce_ms)
        self._pulse = asyncio.Event()
        self._engine = EngineHost(settings, self._threads, self._on_phase, engine_command)
        self._admitting: list[Lease] = []
        self._running: dict[str, RunningJob] = {}
        self._cancelled: set[str] = set()
        self._quarantine = Quarantine()
        self._deaths_in_a_row = 0
        self._num_waiting = 0
        self._samples_per_job = 1
        self._backlog_ended = False
        self._room = asyncio.Event()
        self._stop = asyncio.Event()
        self._hard_stop = asyncio.Event()

    @property
    def num_running(self) -> int:
        """Jobs in the engine."""
        return len(self._running)

    def stop(self) -> None:
        """Drain and end; a second call ends without waiting for running jobs."""
        if self._stop.is_set():
            self._hard_stop.set()
        self._stop.set()

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            ModelNotLoaded: the model cannot be loaded.
            EngineStartFailed: the engine cannot be started, or not any more.
            ModelDisagreement: the queue serves another model already.
            ServerError: the server refuses us, or is unsuitable (too old, evicting).
        """
        try:
            async with Tasks() as tasks:
                tasks.start(self._pulse_loop())
                if await tasks.unless(self._stop, self._start()):
                    claiming = tasks.start(self._claim_loop())
                    tasks.start(self._cancel_loop())
                    tasks.start(self._engine_loop())
                    tasks.start(self._publisher.run())
                    await tasks.unless(self._stop, asyncio.Event().wait())
                    claiming.cancel()
                    await asyncio.gather(claiming, return_exceptions=True)
                    await self._give_back(self._admitting)
                    self._admitting = []
                    await tasks.unless(self._hard_stop, self._drain())
        finally:
            await self._leave()

    async def _start(self) -> None:
        # Only an absent server is waited for at the start: what refuses us now will go on refusing.
        await self._patiently(self._check_server, ServerUnavailable)
        await self._patiently(self._join, ServerUnavailable)
        await self._engine.start()

    async def _check_server(self) -> None:
        report = await check_server(self._settings.redis)
        report.require_suitable()
        for finding in report.findings:
            log.warning("%s", finding.words)

    async def _join(self) -> None:
        await self._broker.start(take_over=self._settings.name or None)  # a dead namesake is no other
        mine = self._settings.model_name
        for name, beat in (await self._broker.others()).items():
            if beat.model != mine:
                raise ModelDisagreement(
                    f"consumer {name} serves {beat.model!r} on this queue, not {mine!r}; stop it first, "
                    "or give this model a queue of its own with --shard"
                )

    def _on_phase(self) -> None:
        """The engine is in another phase: say so, and claim anew where it can take jobs."""
        self._num_waiting = 0
        self._pulse.set()
        self._room.set()

    # Claiming

    def _credit(self) -> int:
        """How many more jobs the engine can admit soon, if they have as many samples as the last ones."""
        served = self._engine.served
        if served is None or self._quarantine.active:
            return 0
        if self._running and self._num_waiting >= max(1, self._settings.lookahead):
            return 0  # blocks are the bottleneck, not sequences
        room = served.ready.max_num_seqs + self._settings.lookahead - self._num_rows
        return room if room <= 0 else max(1, room // self._samples_per_job)

    @property
    def _num_rows(self) -> int:
        return sum(job.num_rows for job in self._running.values())

    async def _claim_loop(self) -> None:
        while True:
            credit = self._credit()
            if credit <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            self._admitting = await self._patiently(lambda credit=credit: self._broker.claim(credit))
            claimed = len(self._admitting)
            if claimed:
                await self._admit(last=claimed < credit)
                if claimed == credit:
                    continue
            elif not self._backlog_ended:
                self._engine.submit([], last=True)
                self._backlog_ended = True
            await self._patiently(lambda: self._broker.wait_for_jobs(self._outage.block_ms(_IDLE_BLOCK_MS)))

    async def _admit(self, *, last: bool) -> None:
        published = {
            lease.request_id: await self._patiently(lambda lease=lease: self._broker.published(lease.job_id))
            for lease in self._admitting
            if lease.deliveries > 1
        }
        served = self._engine.served
        if served is None:  # the engine died just now
            await self._patiently(lambda: self._broker.release(self._admitting))
            self._admitting = []
            return
        jobs, endings = await self._threads.admit(served, self._admitting, published)
        self._admitting = []
        self._publisher.hand_over([], endings)
        jobs = [job for job in jobs if job.lease.key not in self._cancelled]
        self._cancelled.clear()
        for job in jobs:
            # This process may hold an older lease of the job, if it was too busy to renew it.
            if (earlier := self._running.get(job.lease.key)) is not None:
                self._drop(earlier.lease)
            self._running[job.lease.key] = job
        if jobs:
            self._samples_per_job = max(1, sum(job.num_rows for job in jobs) // len(jobs))
        if self._quarantine.active:  # the engine died while these were admitted
            self._quarantine.join_later(job.lease.key for job in jobs)
            self._try_next_suspect()
        else:
            self._engine.submit([job.remaining() for job in jobs], last=last)
            self._backlog_ended = last

    # Engine

    async def _engine_loop(self) -> None:
        async for step in self._engine.steps(self._engine_died, self._survivors):
            await self._take_step(step)

    async def _take_step(self, step: Step) -> None:
        self._num_waiting = step.num_waiting
        outputs = [(job, out) for out in step.outputs if (job := self._run_of(out.request_id))]
        digest = await self._threads.digest(outputs)
        # A job cancelled or lost while the thread was at work has nothing more to say.
        ended = [(job, ending) for job, ending in digest.ended if self._run_of(job.request.request_id)]
        self._engine.abort(digest.broken, digest.stopped)
        for job, _ in ended:
            self._forget(job)
            self._deaths_in_a_row = 0
        self._publisher.hand_over(digest.progress, [ending for _, ending in ended])
        self._quarantine.survived({job.lease.key for job, _ in outputs})
        self._try_next_suspect()
        self._room.set()

    def _run_of(self, request_id: str) -> RunningJob | None:
        """The running job of this request; None where it has ended, or the request is an earlier run's."""
        job = self._running.get(job_key(request_id))
        return job if job is not None and job.request.request_id == request_id else None

    def _engine_died(self) -> None:
        """Blame whom there is to blame.

        Raises:
            EngineStartFailed: it dies again and again, and nothing is ever finished.
        """
        self._deaths_in_a_row += 1
        self._backlog_ended = False  # nobody has told the next one
        if self._deaths_in_a_row > _MAX_FRUITLESS_DEATHS:
            raise EngineStartFailed(
                f"the engine died {self._deaths_in_a_row} times in a row without finishing a job"
            )
        for key in self._quarantine.engine_died(self._running, self._settings.max_engine_deaths):
            words = "the engine dies when it runs this job"
            ending = self._running[key].failure(Error(type="engine_error", message=words, retryable=True))
            self._publisher.hand_over([], [ending])
            del self._running[key]

    def _survivors(self) -> list[Request]:
        """Requests for a new engine: all that run; one of them where they are suspects."""
        if not self._quarantine.active:
            return [job.remaining() for job in self._running.values()]
        key = self._quarantine.next_to_join()
        return [] if key is None else [self._running[key].remaining()]

    def _try_next_suspect(self) -> None:
        if self._engine.served is None:
            return  # after the restart
        key = self._quarantine.next_to_join()
        if key is not None:
            self._engine.submit([self._running[key].remaining()])

    def _forget(self, job: RunningJob) -> None:
        del self._running[job.lease.key]
        self._quarantine.forget(job.lease.key)

    # Leases

    async def _cancel_loop(self) -> None:
        while True:
            cancelled = await self._patiently(
                lambda: self._broker.wait_for_cancelled(self._outage.block_ms(BLOCK_MS))
            )
            self._cancelled |= cancelled & {lease.key for lease in self._admitting}
            for key in cancelled & self._running.keys():
                self._drop(self._running[key].lease)

    async def _pulse_loop(self) -> None:
        """Renew every lease and beat: three times a lease, and whenever the engine enters a new phase."""
        while True:
            self._pulse.clear()
            try:
                for lease in await self._broker.renew(self._held()):
                    self._drop(lease)
                await self._broker.heartbeat(self._beat())
                wait_s = self._settings.lease_s / 3
                self._outage.worked("leases")
            except ServerError as error:
                self._outage.failed("leases", error)
                wait_s = min(1.0, self._settings.lease_s / 10)
            with contextlib.suppress(TimeoutError):
                # Not asyncio.wait_for: before Python 3.12 it can swallow a cancellation.
                async with asyncio.timeout(wait_s):
                    await self._pulse.wait()

    def _held(self) -> list[Lease]:
        running = [job.lease for job in self._running.values()]
        return [*self._admitting, *running, *self._publisher.unwritten]

    def _drop(self, lease: Lease) -> None:
        """Stop running a job that is not ours any more, without a word to anyone."""
        job = self._run_of(lease.request_id)
        if job is not None:
            self._forget(job)
            self._engine.abort([lease.request_id])
            self._try_next_suspect()
            self._room.set()

    def _beat(self) -> Heartbeat:
        served = self._engine.served
        return Heartbeat(
            model=self._settings.model_name,
            phase="draining" if self._stop.is_set() else self._engine.phase,
            at_ms=0,
            interval_ms=int(self._settings.lease_s * 1000 / 3),
            max_num_seqs=served.ready.max_num_seqs if served else 0,
            num_running=min(self._num_rows, served.ready.max_num_seqs) if served else 0,
            defaults=served.defaults.stated() if served else {},
        )

    # Ending

    async def _drain(self) -> None:
        """Give running jobs their grace; claiming has ended already."""
        self._pulse.set()
        if self._running:
            log.info("draining: %d jobs have %g s to finish", len(self._running), self._settings.grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.grace_s):
                while self._running:
                    self._room.clear()
                    await self._room.wait()
                await self._publisher.drained()

    async def _leave(self) -> None:
        """Give back what is still held, take the name off the group, end the child."""
        held = len(self._held())
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                released = await self._broker.retire(self._broker.consumer)
            if released:
                log.info("released %d jobs for others to take", released)
        except (ServerError, TimeoutError) as error:
            log.warning("could not release %d jobs, their leases will expire: %s", held, error)
        await self._engine.stop()
        self._threads.close()
        await self._link.aclose()

    async def _give_back(self, leases: list[Lease]) -> None:
        try:
            await self._broker.release(leases)
        except ServerError as error:
            log.warning("could not release %d jobs, their leases will expire: %s", len(leases), error)

    async def _patiently(
        self, call: Callable[[], Awaitable[T]], trouble: type[ServerError] = ServerError
    ) -> T:
        """Call until it raises no `trouble`."""
        try:
            for pause in pauses():
                try:
                    reply = await call()
                except trouble as error:
                    self._outage.failed(call, error)
                    await asyncio.sleep(pause)
                else:
                    self._outage.worked(call)
                    return reply
        finally:
            self._outage.gave_up(call)
        raise AssertionError("pauses never end")
