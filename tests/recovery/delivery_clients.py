"""What clients and operators do to a queue, as rules of a state machine, and what must come of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from penstock import BatchUnknown, CursorMoved, Job
from penstock.errors import QueueFull
from penstock.keys import DEFAULT_LANE
from penstock.status import Ended, Expired, Leased, Queued, Released, Unknown
from tests.recovery.delivery_actor import Actor
from tests.recovery.delivery_model import KnownBatch, KnownJob, Model
from tests.recovery.delivery_server import Connections

LANES = st.sampled_from(["bulk", DEFAULT_LANE, "tenant"])
PICK = st.integers(0, 63)
FORMS = st.builds(
    lambda stream, attempts: Job(prompt="x", stream=stream, max_attempts=attempts),
    st.booleans(),
    st.sampled_from([None, 1, 2]),
)


class ClientRules(RuleBasedStateMachine):
    """Enqueue, cancel, ask, pause, limit, requeue."""

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self.do, self.server, self.client = connections.do, connections.server, connections.client
        self.server.flushall()
        self.model = Model()
        self.actors: list[Actor] = []
        self.num_rows = 0
        self.open_batch()

    def open_batch(self) -> None:
        """A new batch, the one that rows go into."""
        self.batch_id = f"batch-{len(self.model.batches)}"
        self.model.batches[self.batch_id] = KnownBatch()
        self.batch = self.do(self.client.create_batch(self.batch_id))

    def rows(self, forms: Sequence[Job]) -> list[Job]:
        """The next rows of the batch."""
        start, self.num_rows = self.num_rows, self.num_rows + len(forms)
        return [
            Job(
                prompt="x",
                stream=form.stream,
                max_attempts=form.max_attempts,
                batch=self.batch_id,
                row=start + i,
            )
            for i, form in enumerate(forms)
        ]

    def pick_job(self, pick: int) -> KnownJob:
        """One of all jobs, the newest being the likeliest to be picked."""
        jobs = list(self.model.jobs.values())
        return jobs[-1 - pick % len(jobs)]

    # Enqueuing

    @rule(lane=LANES, form=FORMS, name=st.sampled_from([None, None, "a", "b"]), is_row=st.booleans())
    def submit(self, lane: str, form: Job, name: str | None, is_row: bool) -> None:
        job = self.rows([form])[0] if is_row else form
        known = self.model.remembered.get(name or "")
        if known is None and self.model.room(lane) < 1:
            with pytest.raises(QueueFull):
                self.do(self.client.submit(job, lane, idempotency_key=name))
            return
        job_id = self.do(self.client.submit(job, lane, idempotency_key=name))
        if known is not None:
            assert job_id == known
            self.model.declared.add(lane)
            return
        self.accept([job_id], lane, [job], [name or ""])

    @rule(
        lane=LANES,
        forms=st.lists(FORMS, min_size=1, max_size=6),
        names=st.none() | st.lists(st.sampled_from("abcdef"), min_size=6, max_size=6),
        is_batch=st.booleans(),
    )
    def submit_many(self, lane: str, forms: list[Job], names: list[str] | None, is_batch: bool) -> None:
        """One chunk: all or none."""
        jobs = self.rows(forms) if is_batch else forms
        call = self.client.submit_many(jobs, lane, idempotency_keys=names)
        named = [*names[: len(jobs)]] if names else [""] * len(jobs)
        new = {name for name in named if name not in self.model.remembered}
        count = len(new) if names else len(jobs)
        if count and self.model.room(lane) < count:
            with pytest.raises(QueueFull):
                self.do(call)
            return
        self.accept(self.do(call), lane, jobs, named)

    @rule(lane=LANES, forms=st.lists(FORMS, min_size=1, max_size=4), is_right=st.booleans())
    def enqueue_rows(self, lane: str, forms: list[Job], is_right: bool) -> None:
        batch = self.model.batches[self.batch_id]
        jobs = self.rows(forms)
        cursor = batch.cursor if is_right else "elsewhere"
        call = self.batch.enqueue_rows(jobs, cursor=cursor, new_cursor=str(self.num_rows), lane=lane)
        if not is_right or self.model.room(lane) < len(jobs):
            with pytest.raises(QueueFull if is_right else CursorMoved):
                self.do(call)
            return
        self.accept(self.do(call), lane, jobs, [""] * len(jobs))
        batch.cursor = str(self.num_rows)

    def accept(self, ids: Sequence[str], lane: str, jobs: Sequence[Job], names: Sequence[str]) -> None:
        """Ids that a call gave: new ones, and those of keys that are known."""
        self.model.declared.add(lane)
        for job_id, job, name in zip(ids, jobs, names, strict=True):
            if name in self.model.remembered:
                assert job_id == self.model.remembered[name]
                continue
            self.model.accept(job_id, lane, job)
            if name:
                self.model.remembered[name] = job_id
            if job.batch is not None:
                self.model.batches[job.batch].total += 1

    @rule()
    def delete_batch(self) -> None:
        """Rows still outstanding end in streams of their own."""
        deleted = self.batch
        self.do(deleted.delete())
        self.model.batches[self.batch_id].deleted = True
        with pytest.raises(BatchUnknown):
            self.do(deleted.submit_many(["x"]))
        self.open_batch()

    # Asking and operating

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        live = self.model.live()
        job = live[pick % len(live)] if live and pick % 8 else self.pick_job(pick)
        assert self.do(self.client.cancel(job.job_id)) == (job.phase != "ended")
        if job.phase != "ended":
            self.model.ended(job, "cancelled")
            for actor in self.actors:
                actor.unheard.add(job.job_id)

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK)
    def ask(self, pick: int) -> None:
        job = self.pick_job(pick)
        never = f"{job.lane}.99999999999999-0.0123456789abcdef"
        assert self.do(self.client.status(never)) == Unknown()
        status = self.do(self.client.status(job.job_id))
        match status:
            case Queued():
                assert job.phase == "queued"
            case Leased():
                assert job.phase == "held"
                assert (status.consumer, status.deliveries) == (job.owner, job.deliveries)
                assert len(status.attempts) == job.num_failures
            case Released():
                assert (job.phase, status.deliveries) == ("released", job.deliveries)
                assert len(status.attempts) == job.num_failures
            case Ended():
                assert job.phase == "ended"
                assert not job.is_row
            case Expired():
                assert job.is_row
            case _:
                raise AssertionError(f"{job}: {status}")
        if isinstance(status, Queued | Released):
            assert (status.waits_for == "resume") == self.model.is_paused(job.lane)

    @rule(lane=st.none() | LANES)
    def pause(self, lane: str | None) -> None:
        self.do(self.client.pause(lane))
        self.model.paused.add(lane or "*")
        if lane is not None:
            self.model.declared.add(lane)

    @precondition(lambda self: self.model.paused)
    @rule()
    def resume(self) -> None:
        for lane in sorted(self.model.paused):
            self.do(self.client.resume(None if lane == "*" else lane))
        self.model.paused.clear()

    @rule(lane=LANES, limit=st.sampled_from([None, None, 0, 8]), weight=st.sampled_from([0.01, 1, 1000]))
    def set_lane(self, lane: str, limit: int | None, weight: float) -> None:
        self.do(self.client.set_lane(lane, max_jobs=limit, weight=weight))
        self.model.declared.add(lane)
        if limit is None:
            self.model.limits.pop(lane, None)
        else:
            self.model.limits[lane] = limit

    @precondition(lambda self: self.model.letters)
    @rule(pick=PICK, is_wanted=st.booleans())
    def clear_letter(self, pick: int, is_wanted: bool) -> None:
        """Requeue a dead letter, or drop it."""
        letters = self.do(self.client.dead_letters())
        assert [letter.job_id for letter in letters] == self.model.letters
        letter = letters[pick % len(letters)]
        old = self.model.jobs[letter.job_id]
        assert len(letter.attempts) == old.num_failures
        self.model.letters.remove(letter.job_id)
        if not is_wanted:
            assert self.do(self.client.drop(letter.letter_id))
            return
        job_id = self.do(self.client.requeue(letter.letter_id))
        job = Job(prompt="x", stream=old.job.stream, max_attempts=old.job.max_attempts, retry_of=old.job_id)
        self.model.accept(job_id, old.lane, job)
