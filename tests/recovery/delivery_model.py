"""What ought to be true of a queue: every accepted job, who holds it, what is published, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

from consumer.lease import Lease
from penstock.keys import DEFAULT_LANE
from penstock.messages import Job

LEASE_MS = 60_000
"""Longer than any example lasts: time passes only where a rule says so."""
NUM_TOKENS = 6
MAX_ATTEMPTS = 3
"""Of a job that does not say."""

Phase = Literal["queued", "held", "released", "ended"]
EndKind = Literal["done", "failed", "cancelled"]


def script(job_id: str) -> list[int]:
    """A job's tokens: a function of its id and of nothing else.

    All jobs are of one length: ids are new each time an example is run, and no outcome may hang on them.
    """
    seed = crc32(job_id.encode())
    return [(seed >> position) % 50_000 for position in range(NUM_TOKENS)]


@dataclass
class KnownJob:
    """One accepted job."""

    job_id: str
    lane: str
    job: Job
    phase: Phase = "queued"
    owner: str = ""
    """The consumer that holds it; empty where none does."""
    deliveries: int = 0
    claimable: bool = False
    """Its lease has run out, or it was released and the delay is over."""
    num_failures: int = 0
    num_published: int = 0
    end: EndKind | None = None
    is_row: bool = False
    """It ended as a row of its batch: its end is in the batch's done stream and nowhere else."""


@dataclass
class KnownBatch:
    """One batch that was created."""

    total: int = 0
    cursor: str = ""
    deleted: bool = False


@dataclass
class Model:
    """The whole queue."""

    jobs: dict[str, KnownJob] = field(default_factory=dict)
    batches: dict[str, KnownBatch] = field(default_factory=dict)
    letters: list[str] = field(default_factory=list)
    """Job ids of dead letters, oldest first."""
    remembered: dict[str, str] = field(default_factory=dict)
    """Job id by idempotency key."""
    paused: set[str] = field(default_factory=set)
    """Lanes; `*` for the queue."""
    limits: dict[str, int] = field(default_factory=dict)
    declared: set[str] = field(default_factory=lambda: {DEFAULT_LANE})
    tokens: set[tuple[str, str, int]] = field(default_factory=set)
    """(job, consumer, deliveries) of every lease ever given."""

    def live(self, lane: str | None = None) -> list[KnownJob]:
        """Jobs that have not ended, of one lane or of all."""
        jobs = self.jobs.values()
        return [job for job in jobs if job.phase != "ended" and lane in (None, job.lane)]

    def room(self, lane: str) -> int:
        """How many more jobs the lane takes."""
        return self.limits.get(lane, 10**6) - len(self.live(lane))

    def accept(self, job_id: str, lane: str, job: Job) -> None:
        """A job was enqueued."""
        assert job_id not in self.jobs, "an id was given out twice"
        self.jobs[job_id] = KnownJob(job_id, lane, job)
        self.declared.add(lane)

    def is_paused(self, lane: str) -> bool:
        """Whether nothing may be taken from the lane."""
        return bool(self.paused & {"*", lane})

    def may_claim(self, job: KnownJob, reclaims: bool) -> bool:
        """Whether a consumer that claims now may be given the job."""
        free = job.phase == "released" and job.claimable
        expired = reclaims and job.phase == "held" and job.claimable
        waits = job.phase == "queued" or free or expired
        return waits and not self.is_paused(job.lane)

    def claimed(self, lease: Lease, consumer: str, reclaims: bool) -> None:
        """A consumer was given a lease: check that it could be, and that its token is new."""
        job = self.jobs[lease.key]
        assert self.may_claim(job, reclaims), f"{job} was claimed"
        assert lease.deliveries == job.deliveries + 1
        assert lease.num_failures == job.num_failures
        token = (lease.key, consumer, lease.deliveries)
        assert token not in self.tokens, "two runs were given one token"
        self.tokens.add(token)
        job.phase, job.owner, job.deliveries, job.claimable = "held", consumer, lease.deliveries, False

    def holds(self, lease: Lease, consumer: str) -> bool:
        """Whether the lease is still the consumer's."""
        job = self.jobs[lease.key]
        return job.phase == "held" and (job.owner, job.deliveries) == (consumer, lease.deliveries)

    def released(self, job: KnownJob, *, claimable: bool) -> None:
        """Whoever held the job does no more."""
        job.phase, job.owner, job.claimable = "released", "", claimable

    def retired(self, consumer: str, lanes: set[str]) -> int:
        """A consumer's name was removed from these lanes; gives how many leases it held there."""
        held = [job for job in self.live() if job.owner == consumer and job.lane in lanes]
        for job in held:
            self.released(job, claimable=True)
        return len(held)

    def ended(self, job: KnownJob, end: EndKind) -> None:
        """A job's one end."""
        assert job.phase != "ended", f"{job} ended twice"
        job.phase, job.end, job.owner = "ended", end, ""
        batch = job.job.batch
        job.is_row = batch is not None and not self.batches[batch].deleted
        if job.is_row:
            job.num_published = 0

    def failed(self, job: KnownJob, delay_ms: int) -> str:
        """A retryable failure; gives what comes of it."""
        job.num_failures += 1
        if job.num_failures < (job.job.max_attempts or MAX_ATTEMPTS):
            self.released(job, claimable=delay_ms == 0)
            return "retry"
        self.ended(job, "failed")
        self.letters.append(job.job_id)
        return "dead"
