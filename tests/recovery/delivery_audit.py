"""The server against the model: what is there, all of it, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import ResponseError

from penstock.keys import GROUP, Keys
from penstock.messages import Done, Failed, Tokens, decode_event, decode_terminal
from tests.recovery.delivery_model import KnownJob, Model, script

KEYS = Keys()
Entries = Sequence[tuple[bytes, dict[bytes, bytes]]]
"""Of a stream: id and fields."""


def audit(server: redis.Redis, model: Model) -> None:
    """Raises AssertionError where the server has anything else than the model."""
    lanes = sorted(model.declared)
    with server.pipeline(transaction=False) as pipeline:
        for lane in lanes:
            pipeline.xrange(KEYS.jobs(lane))
            pipeline.xpending_range(KEYS.jobs(lane), GROUP, "-", "+", 10_000)
        for job_id in model.jobs:
            pipeline.xrange(KEYS.result(job_id))
        for batch_id in model.batches:
            pipeline.hgetall(KEYS.batch(batch_id))
            pipeline.xrange(KEYS.batch_done(batch_id))
        pipeline.hgetall(KEYS.attempts)
        pipeline.xrange(KEYS.dead)
        pipeline.hgetall(KEYS.deficits)
        replies = iter(pipeline.execute(raise_on_error=False))
    for lane in lanes:
        _check_lane(model, lane, next(replies), next(replies))
    for job in model.jobs.values():
        _check_result(job, next(replies))
    for batch_id in model.batches:
        _check_batch(model, batch_id, next(replies), next(replies))
    _check_attempts(model, next(replies))
    assert [fields[b"job_id"].decode() for _, fields in next(replies)] == model.letters
    for name, value in next(replies).items():
        assert name == b"*" or math.isfinite(float(value))


def _check_lane(model: Model, lane: str, entries: Entries, pending: Any) -> None:
    """Accepted jobs are queued, leased or delayed until they end; the lane holds these and no others."""
    live = model.live(lane)
    ids = [f"{lane}.{entry.decode()}.{fields[b'nonce'].decode()}" for entry, fields in entries]
    assert ids == [job.job_id for job in live]
    expected = {
        job.job_id.split(".")[1]: (job.owner or "-", job.deliveries) for job in live if job.phase != "queued"
    }
    if isinstance(pending, ResponseError):
        assert not expected
        assert str(pending).startswith("NOGROUP")
        return
    leases = [(row["message_id"], row["consumer"], row["times_delivered"]) for row in pending]
    assert {entry.decode(): (owner.decode(), count) for entry, owner, count in leases} == expected


def _check_result(job: KnownJob, entries: Entries) -> None:
    """Positions without a gap, the scripted tokens, at most one end and nothing behind it."""
    events = [(entry.decode(), decode_event(fields[b"event"])) for entry, fields in entries]
    tokens = [(event_id, event) for event_id, event in events if isinstance(event, Tokens)]
    token_ids: list[int] = []
    for event_id, event in tokens:
        assert event.text_offset == len(token_ids)
        token_ids += event.token_ids
        assert event_id == f"{len(token_ids)}-0"
    ends = events[len(tokens) :]
    assert len(ends) == (job.phase == "ended" and not job.is_row), f"{job}: {events}"
    if job.phase == "ended" and not job.job.stream and job.end != "cancelled":
        assert not tokens
    else:
        assert token_ids == script(job.job_id)[: job.num_published]
    if ends:
        event_id, event = ends[0]
        _check_end(job, event)
        if job.job.stream:
            assert event_id == f"{job.num_published}-1"


def _check_end(job: KnownJob, event: object) -> None:
    if job.end == "done":
        assert isinstance(event, Done)
        assert event.outputs[0].token_ids == script(job.job_id)
    else:
        assert isinstance(event, Failed)
        assert (event.error.type == "cancelled") == (job.end == "cancelled")


def _check_batch(model: Model, batch_id: str, counted: dict[bytes, bytes], rows: Entries) -> None:
    """The counters equal a recount of the rows, and each row that ended is there once."""
    batch = model.batches[batch_id]
    if batch.deleted:
        assert not counted
        assert not rows
        return
    ended = [job for job in model.jobs.values() if job.is_row and job.job.batch == batch_id]
    assert int(counted[b"total"]) == batch.total
    assert int(counted.get(b"completed", 0)) == sum(job.end == "done" for job in ended)
    assert int(counted.get(b"failed", 0)) == sum(job.end != "done" for job in ended)
    assert counted.get(b"cursor", b"").decode() == batch.cursor
    assert sorted(fields[b"job_id"].decode() for _, fields in rows) == sorted(job.job_id for job in ended)
    for _, fields in rows:
        job = model.jobs[fields[b"job_id"].decode()]
        assert fields[b"row"].decode() == ("" if job.job.row is None else str(job.job.row))
        _check_end(job, decode_terminal(fields[b"event"]))


def _check_attempts(model: Model, attempts: dict[bytes, bytes]) -> None:
    """Failed attempts are remembered of outstanding jobs only."""
    found = {job_id.decode(): len(data.splitlines()) for job_id, data in attempts.items()}
    assert found == {job.job_id: job.num_failures for job in model.live() if job.num_failures}
