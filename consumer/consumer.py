"""One consumer: claims by credit, has the engine answer, publishes, renews, and drains when asked to.

Its loops are `Intake`, `Runs`, `Publisher` and `Pulse`, and each outlives the server's outages and the
engine's deaths. A lease is always with one of them: being admitted, running, or ended and not yet written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence

from consumer.broker import Broker
from consumer.engine_counts import Moment
from consumer.engine_host import EngineHost
from consumer.failures import retry_delay_ms
from consumer.intake import Intake
from consumer.lease import Lease
from consumer.outage import Outage
from consumer.publisher import Publisher
from consumer.pulse import Pulse
from consumer.running import RunningJob
from consumer.runs import Runs
from consumer.settings import Settings
from consumer.tasks import Tasks
from consumer.telemetry import Telemetry
from consumer.tokenizer_threads import TokenizerThreads
from penstock.errors import PenstockError, ServerError, ServerUnavailable
from penstock.keys import Keys
from penstock.link import BLOCK_MS, Link
from penstock.messages import Heartbeat
from penstock.pool import REPLY_TIMEOUT_S
from penstock.server import check_server
from penstock.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

_LEAVE_TIMEOUT_S = 5.0
_LEAST_REPLY_TIMEOUT_S = 1.0
_HARD_CHECKPOINT_S = 0.8
"""What a second signal grants to the last checkpoint."""


class ModelDisagreement(PenstockError):
    """Another live consumer serves a different model on the same queue."""


class Consumer:
    """One consumer process. `run` until `stop` was called and everything is given back."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine_command: Sequence[str] = (),
        broker_type: type[Broker] = Broker,
        tracing: Tracing | None = None,
    ) -> None:
        """Prepare; nothing is connected or started before `run`.

        Args:
            engine_command: replaces `python -m engine.process`, see `start_engine`.
            broker_type: replaces the broker by one that fails where a test wants it to.
            tracing: in the place of what the environment asks for.
        """
        self._settings = settings
        # A renewal that meets a connection which died without a word must have time for another one.
        reply_timeout_s = max(_LEAST_REPLY_TIMEOUT_S, min(REPLY_TIMEOUT_S, settings.lease_s / 3))
        self._link = Link(settings.redis, reply_timeout_s)
        name = f"{settings.stable_name}.{secrets.token_hex(4)}"
        self._broker = broker_type(self._link, Keys(settings.shard), name, settings.lease_ms)
        self._outage = Outage(self._connection_lost)
        self._telemetry = Telemetry(settings, name, self._moment, tracing)
        self._observer = observer = self._telemetry.observer
        self._publisher = Publisher(
            self._broker, self._held, self._drop, self._outage, self._retry_delay_ms, observer
        )
        self._threads = TokenizerThreads(settings.coalesce_ms)
        self._engine = EngineHost(settings, self._threads, self._on_phase, engine_command)
        self._runs = Runs(self._engine, self._threads, self._publisher, settings.max_engine_deaths, observer)
        self._intake = Intake(
            self._broker, self._engine, self._threads, self._runs, self._outage, settings.lookahead
        )
        self._pulse = Pulse(self._broker, settings.lease_s, self._held, self._beat, self._drop, self._outage)
        self._stop = asyncio.Event()
        self._hard_stop = asyncio.Event()
        self._started_ms = int(time.time() * 1000)

    @property
    def num_running(self) -> int:
        """Jobs in the engine."""
        return len(self._runs)

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
            await self._telemetry.start()
            async with Tasks() as tasks:
                tasks.start(self._pulse.run())
                if await tasks.unless(self._stop, self._start()):
                    claiming = tasks.start(self._intake.run())
                    tasks.start(self._cancel_loop())
                    tasks.start(self._runs.follow())
                    tasks.start(self._engine.watch(lambda: self._runs.engine_has_work))
                    tasks.start(self._runs.expire())
                    tasks.start(self._publisher.run())
                    tasks.start(self._pulse.tell(lambda: self._runs.counts.num_computed_tokens))
                    await tasks.unless(self._stop, asyncio.Event().wait())
                    claiming.cancel()
                    await asyncio.gather(claiming, return_exceptions=True)
                    await self._give_back()
                    await tasks.unless(self._hard_stop, self._drain())
                    await self._checkpoint()
        finally:
            await self._leave()

    async def _start(self) -> None:
        # Only an absent server is waited for at the start: what refuses us now will go on refusing.
        await self._outage.patiently(self._check_server, ServerUnavailable)
        await self._outage.patiently(self._join, ServerUnavailable)
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
            if abs(3 * beat.interval_ms - self._settings.lease_ms) > 3:
                log.warning(
                    "consumer %s has leases of about %g s, not %g: whose are shorter takes live jobs from "
                    "the others; give all consumers of a queue the same --lease-s",
                    *(name, 3 * beat.interval_ms / 1000, self._settings.lease_s),
                )

    def _on_phase(self) -> None:
        """The engine is in another phase: say so, and claim anew where it can take jobs."""
        self._pulse.quicken()
        self._runs.engine_changed()

    # Leases

    async def _cancel_loop(self) -> None:
        while True:
            cancelled = await self._outage.patiently(
                lambda: self._broker.wait_for_cancelled(self._outage.block_ms(BLOCK_MS))
            )
            self._intake.cancel(cancelled)
            for job in [self._runs.drop_key(key) for key in cancelled]:
                if job is not None:
                    await self._settle(job)

    async def _settle(self, job: RunningJob) -> None:
        """What a cancelled job has cost so far, its lane pays; as well as may be."""
        try:
            await self._broker.settle(job.lease, job.num_tokens)
        except ServerError as error:
            key = job.lease.key
            words = "what job %s has cost was not charged to its lane: %s"
            log.info(words, key, error, extra={"job": key})

    def _held(self) -> list[Lease]:
        return [*self._intake.admitting, *self._runs.held]

    def _drop(self, lease: Lease) -> None:
        self._observer.lost(lease)
        self._runs.drop(lease)

    def _connection_lost(self) -> None:
        self._broker.connection_lost()
        self._pulse.put_off_sweep()

    def _retry_delay_ms(self, num_failures: int) -> int:
        return retry_delay_ms(self._settings.retry_delay_s, num_failures, self._settings.lease_ms)

    def _beat(self) -> Heartbeat:
        served, counts, jobs = self._engine.served, self._runs.counts, self._publisher.counts
        return Heartbeat(
            model=self._settings.model_name,
            phase="draining" if self._stop.is_set() else self._engine.phase,
            at_ms=0,
            interval_ms=int(self._settings.lease_s * 1000 / 3),
            max_num_seqs=served.ready.max_num_seqs if served else 0,
            num_running=min(self._runs.num_rows, served.ready.max_num_seqs) if served else 0,
            defaults=served.defaults.stated() if served else {},
            max_model_len=served.ready.max_model_len if served else 0,
            started_ms=self._started_ms,
            tool_format=served.markers.tool_format if served else None,
            reasoning=served.markers.reasoning if served else None,
            num_waiting=counts.num_waiting,
            kv_usage=round(counts.kv_usage(served.ready.num_blocks), 4) if served else 0.0,
            prompt_tokens_total=counts.num_prompt_tokens,
            generation_tokens_total=counts.num_generation_tokens,
            jobs_total=jobs.num_ended,
            queue_seconds_total=round(jobs.queue_s, 6),
            e2e_seconds_total=round(jobs.e2e_s, 6),
        )

    def _moment(self) -> Moment:
        served = self._engine.served
        return Moment(
            counts=self._runs.counts,
            num_leases=len(self._held()),
            ready=served is not None and self._engine.phase == "ready",
            num_blocks=served.ready.num_blocks if served else 0,
            max_num_seqs=served.ready.max_num_seqs if served else 0,
        )

    # Ending

    async def _drain(self) -> None:
        """Give running jobs their grace; claiming has ended already."""
        self._pulse.quicken()
        if self._runs:
            log.info("draining: %d jobs have %g s to finish", len(self._runs), self._settings.grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.grace_s):
                await self._runs.ended()

    async def _checkpoint(self) -> None:
        """Publish what there is of the jobs that did not end, so that others go on from here."""
        limit_s = _HARD_CHECKPOINT_S if self._hard_stop.is_set() else _LEAVE_TIMEOUT_S
        try:
            async with asyncio.timeout(limit_s):
                await self._runs.checkpoint()
        except TimeoutError:
            log.warning("the last tokens of running jobs could not be published in %g s", limit_s)

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
        await self._telemetry.stop()

    async def _give_back(self) -> None:
        """Give back what was claimed and is not admitted."""
        leases, self._intake.admitting = self._intake.admitting, []
        try:
            await self._broker.release(leases)
            # Of a claim that was under way, the answer never came.
            await self._broker.release_strays(lambda: self._runs.held)
        except ServerError as error:
            log.warning("could not release %d jobs, their leases will expire: %s", len(leases), error)
