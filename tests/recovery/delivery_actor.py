"""A consumer without an engine: the real broker, and runs whose tokens are scripted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from consumer.broker import Broker
from consumer.lease import DROP_TOKENS, Ending, Failure, Lease, Progress
from penstock.keys import Keys
from penstock.link import Link
from penstock.messages import (
    Completion,
    Done,
    Error,
    Failed,
    Job,
    Tokens,
    Usage,
    decode_event,
    decode_job,
    encode_event,
)
from tests.recovery.delivery_model import LEASE_MS, MAX_ATTEMPTS, script

TTL_MS = 86_400_000


@dataclass(eq=False)
class Run:
    """What a consumer believes to be running. It may have lost the lease without knowing."""

    lease: Lease
    job: Job
    num_published: int

    @property
    def num_left(self) -> int:
        """Tokens that are not published yet."""
        return len(script(self.lease.key)) - self.num_published

    def progress(self, count: int) -> list[Progress]:
        """The next `count` tokens, one event each; moves the run on."""
        return [self._event() for _ in range(min(count, self.num_left))]

    def _event(self) -> Progress:
        before = self.num_published
        self.num_published += 1
        ids = script(self.lease.key)[before : self.num_published]
        return Progress(
            lease=self.lease,
            num_before=before,
            event_id=f"{self.num_published}-0",
            event=encode_event(Tokens(text="x" * len(ids), token_ids=ids, text_offset=before)),
            ttl_ms=TTL_MS,
        )

    def done(self, cost: int) -> Ending:
        """The end of a run that went well: a streamed job's last tokens go with it."""
        ids, before = script(self.lease.key), self.num_published
        last = Tokens(text="x" * self.num_left, token_ids=ids[before:], text_offset=before)
        tokens_id = f"{len(ids)}-0" if self.job.stream and self.num_left else ""
        event = Done(
            outputs=[Completion(text="x" * len(ids), finish_reason="stop", token_ids=ids)],
            usage=Usage(prompt_tokens=1, completion_tokens=len(ids)),
            model="scripted",
        )
        return Ending(
            lease=self.lease,
            terminal_id=f"{len(ids)}-1",
            terminal=encode_event(event),
            completed=True,
            result_ttl_ms=TTL_MS,
            num_tokens=cost,
            tokens_id=tokens_id if self.job.stream else DROP_TOKENS,
            tokens=encode_event(last) if tokens_id else b"",
            num_before=before if self.job.stream else 0,
            batch=self.job.batch,
            row=self.job.row,
        )

    def failed(self, cost: int, *, retryable: bool = False) -> Ending:
        """The end of a run that did not."""
        error = Error(type="engine_error", message="as scripted", retryable=retryable)
        failure = Failure(error=error, max_attempts=self.job.max_attempts or MAX_ATTEMPTS)
        return Ending(
            lease=self.lease,
            terminal_id=f"{self.num_published}-1",
            terminal=encode_event(Failed(error=error)),
            completed=False,
            result_ttl_ms=TTL_MS,
            num_tokens=cost,
            tokens_id="" if self.job.stream else DROP_TOKENS,
            num_before=self.num_published if self.job.stream else 0,
            failure=failure if retryable else None,
            batch=self.job.batch,
            row=self.job.row,
        )


@dataclass
class Actor:
    """One consumer process."""

    name: str
    broker: Broker
    lanes: set[str]
    """Those that it knows of."""
    runs: list[Run] = field(default_factory=list)
    unheard: set[str] = field(default_factory=set)
    """Jobs cancelled since it last listened."""
    reclaims: bool = True
    looks_up_lanes: bool = False
    """Its next claim begins with that: it may have missed notices."""

    @classmethod
    async def start(cls, link: Link, name: str, lanes: set[str], take_over: str | None) -> Actor:
        """A process of a new name."""
        broker = Broker(link, Keys(), name, LEASE_MS)
        await broker.start(take_over=take_over)
        return cls(name, broker, set(lanes))

    async def claim(self, credit: int) -> list[Lease]:
        """Take jobs, and go on with each from where earlier runs of it got to."""
        leases = await self.broker.claim(credit)
        assert len(leases) <= credit
        for lease in leases:
            events = [decode_event(data) for _, data in await self.broker.published(lease.job_id)]
            count = sum(len(event.token_ids) for event in events if isinstance(event, Tokens))
            assert lease.job is not None
            self.runs.append(Run(lease, decode_job(lease.job), count))
        return leases

    def some(self, picks: Sequence[int]) -> list[Run]:
        """Some of its runs, each once."""
        return list({id(run): run for run in (self.runs[pick % len(self.runs)] for pick in picks)}.values())

    def forget(self, lost: Sequence[Lease]) -> None:
        """Stop runs."""
        gone = {lease.request_id for lease in lost}
        self.runs = [run for run in self.runs if run.lease.request_id not in gone]
