"""Consumers that come and go while long jobs run: nothing is begun again that need not be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from penstock.client import Client
from penstock.messages import Event, Tokens
from tests.conftest import Server
from tests.consumer.scripted_engine import logged
from tests.recovery.processes import ConsumerProcess, events_of
from tests.recovery.scripted_jobs import (
    check_all,
    long_jobs,
    submit,
    until_ended,
    until_published,
    until_ready,
)

NUM_TOKENS = 300


async def test_every_consumer_restarted_five_times(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
) -> None:
    model = make_model("model", step_s=0.1)
    settings = {"lease_s": 30.0, "grace_s": 0.1, "max_num_seqs": 8}
    running = [start(server.url, model, **settings) for _ in range(2)]
    sent = await submit(client, long_jobs(8, NUM_TOKENS))
    await until_published(client, sent[0])
    for round_ in range(5):
        if round_ == 4:
            make_model("model", step_s=0.005)  # read at a start: the last two bring the jobs to their ends
        for n, consumer in enumerate(running):
            await until_ready(server, 2)
            assert await asyncio.to_thread(consumer.drain) == 0
            running[n] = start(server.url, model, **settings)
    await until_ended(client, sent)
    check_all(server, sent)
    requests = logged(model / "requests.log", "request")
    deliveries = max(int(request_id.rpartition("/")[2]) for request_id, _ in requests)
    assert deliveries > 3, "the restarts met the jobs"
    for one in sent:
        begun = {int(r.rpartition("/")[2]): held["0"] for r, held in requests if r.startswith(one.id)}
        positions = [begun[delivery] for delivery in sorted(begun)]
        assert positions == sorted(positions), "a run began before the one before it ended"
        assert positions[-1] > 0


async def test_two_of_four_done(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
) -> None:
    models = make_model("first"), make_model("second")
    sent = await submit(client, [*long_jobs(2, 30), *long_jobs(2, 300)])
    first = start(server.url, models[0], lease_s=2.0)
    await until_ended(client, sent[:2])
    await until_published(client, sent[3], 5)
    first.kill()
    with server.client() as redis:
        checkpoints = {f"{one.id}/2": num_published(events_of(redis, one.id)) for one in sent[2:]}
    start(server.url, models[1], lease_s=3.0)
    await until_ended(client, sent)
    check_all(server, sent)
    before, after = (logged(model / "requests.log", "request") for model in models)
    assert sorted(request_id for request_id, _ in before) == sorted(f"{one.id}/1" for one in sent)
    assert {request_id: resumed["0"] for request_id, resumed in after} == checkpoints
    assert len(before) + len(after) == 6
    assert min(checkpoints.values()) > 0


def num_published(events: list[tuple[str, Event]]) -> int:
    """Tokens that are out of a job that has not ended."""
    return sum(len(event.token_ids) for _, event in events if isinstance(event, Tokens))
