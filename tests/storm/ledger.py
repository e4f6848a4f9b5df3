"""What was asked, what came, and what is wrong with it."""

from __future__ import annotations

import time
from collections import Counter
from typing import Literal

from msgspec import Struct

from penstock.messages import Done, Event, Failed
from tests.recovery.processes import check_stream
from tests.storm.pool import Question

Fault = Literal["lost", "doubled", "changed"]
FAULTS: tuple[Fault, ...] = ("lost", "doubled", "changed")


class Record(Struct):
    """One job that was accepted."""

    job_id: str
    question: Question
    ended_at: float | None = None
    """By the monotonic clock, as a client saw it."""
    events: list[tuple[str, Event]] | None = None
    """What a subscriber saw; a list of the end alone where nobody followed. None once it was audited."""
    num_tokens: int = 0
    """Of its answer; 0 where it was cancelled."""
    batch: str | None = None

    @property
    def kind(self) -> str:
        """Of its question, or `row`."""
        return "row" if self.batch else self.question.spec.kind

    @property
    def followed(self) -> bool:
        """Whether a subscriber saw every event, and not the end alone."""
        return self.question.spec.job.stream and self.batch is None


class Problem(Struct, frozen=True):
    """A promise that was broken."""

    fault: Fault
    job_id: str
    words: str


class Ledger:
    """All jobs of a storm, by id."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.problems: list[Problem] = []
        self.ended: Counter[str] = Counter()
        """By kind of job; `cancelled` and `row` are kinds of their own."""
        self.by_entry: dict[str, str] = {}
        """Job id by lane and entry, `LANE.ENTRY`: what a consumer's leases are known by."""

    def accepted(self, job_id: str, question: Question, batch: str | None = None) -> Record:
        """Take note of a job."""
        record = Record(job_id, question, batch=batch)
        self.records[job_id] = record
        self.by_entry[job_id.rpartition(".")[0]] = job_id
        return record

    @property
    def num_open(self) -> int:
        """Jobs that have not ended."""
        return sum(record.ended_at is None for record in self.records.values())

    @property
    def num_ended(self) -> int:
        """Jobs that have."""
        return sum(self.ended.values())

    def blame(self, fault: Fault, job_id: str, words: str) -> None:
        """Take note of a broken promise."""
        self.problems.append(Problem(fault, job_id, words))
        print(f"!! {fault}: {job_id}: {words[:1000]}", flush=True)

    def close(self, record: Record, events: list[tuple[str, Event]], *, cancelled: bool | None) -> None:
        """Judge what a client saw of a job. `cancelled`: whether it must have been, None where it may."""
        record.ended_at = time.monotonic()
        record.events = events
        _, end = events[-1]
        if isinstance(end, Failed):
            if end.error.type == "cancelled" and cancelled is not False:
                self.ended["cancelled"] += 1
            else:
                self.blame("changed", record.job_id, f"failed: {end.error.type}: {end.error.message}")
            return
        if cancelled:
            self.blame("changed", record.job_id, "it was cancelled, and ended well")
            return
        assert isinstance(end, Done)
        self.ended[record.kind] += 1
        record.num_tokens = end.usage.completion_tokens
        if end.outputs != record.question.answer:
            self.blame("changed", record.job_id, f"{end.outputs}\nis not {record.question.answer}")
        self._judge_stream(record, events)

    def _judge_stream(self, record: Record, events: list[tuple[str, Event]]) -> None:
        ids = [event_id for event_id, _ in events]
        if len(ids) != len(set(ids)):
            self.blame("doubled", record.job_id, f"a subscriber was given an event twice: {ids}")
        elif record.followed:
            try:
                check_stream(events)
            except AssertionError as error:
                words = f"the stream that a subscriber saw has a fault: {error}; its ids: {ids}"
                self.blame("changed", record.job_id, words)

    def audit(self, record: Record, stored: list[tuple[str, Event]]) -> None:
        """Compare what the server holds, some time after the end, with what a client saw."""
        ends = [event_id for event_id, event in stored if isinstance(event, Done | Failed)]
        if len(ends) > 1:
            self.blame("doubled", record.job_id, f"it ended {len(ends)} times: {ends}")
        elif not stored or not record.events:
            self.blame("lost", record.job_id, "its result is gone")
        elif stored[-1][1] != record.events[-1][1]:
            self.blame("changed", record.job_id, f"its end is {stored[-1]}, and was {record.events[-1]}")
        elif record.followed and stored != record.events:
            differ = [event for event in stored if event not in record.events][:3]
            self.blame("changed", record.job_id, f"a subscriber saw another stream, without {differ} for one")
        record.events = None
