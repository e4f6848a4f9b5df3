"""SIGKILL at every point between a consumer and the server: whoever comes next leaves no trace of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from consumer.lease import job_key
from penstock.client import Client
from tests.conftest import Server
from tests.consumer.scripted_engine import logged
from tests.recovery.failpoints import DRAINING, Point
from tests.recovery.processes import ConsumerProcess
from tests.recovery.scripted_jobs import (
    NUM_TOKENS,
    Submitted,
    check_all,
    jobs,
    submit,
    until_ended,
    until_published,
)

NTH: dict[Point, tuple[int, ...]] = {"after claim": (1, 2), "after publish": (1, 5), "inside commit": (1, 2)}
"""Where once is not enough: the first claim meets an idle engine, the first commit a whole batch."""
CASES = [(point, nth) for point in get_args(Point) for nth in NTH.get(point, (1,))]


@pytest.mark.parametrize(("point", "nth"), CASES, ids=[f"{point} {nth}" for point, nth in CASES])
async def test_kill(
    server: Server,
    client: Client,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
    point: Point,
    nth: int,
) -> None:
    # In a drain there has to be something left to do; behind it, something left to give back.
    settings = {"lease_s": 1.0, "max_num_seqs": 12, "grace_s": 10 if point == "in drain" else 0.1}
    sent = await submit(client, jobs(30, 100 if point in DRAINING else NUM_TOKENS))
    first_model, second_model = make_model("first"), make_model("second")
    first = start(server.url, first_model, "--die-at", point, str(nth), **settings)
    if point in DRAINING:
        await until_published(client, sent[0])
        first.process.terminate()
    assert first.process.wait(20) == -signal.SIGKILL, "it got past the point alive"
    start(server.url, second_model, **settings)
    await until_ended(client, sent)
    check_all(server, sent)
    check_log(sent, first_model, second_model, point)


def check_log(sent: list[Submitted], first_model: Path, second_model: Path, point: Point) -> None:
    """Only what the dead one held was begun twice, and what had got out was not generated again."""
    log = first_model / "requests.log"
    first = {job_key(r) for r, _ in logged(log, "request")} if log.exists() else set[str]()
    again = [(job_key(r), sum(resumed.values())) for r, resumed in logged(second_model / log.name, "request")]
    second = {key for key, _ in again}
    assert len(again) == len(second), "the second ran a job twice"
    assert first | second == {one.id for one in sent}
    assert len(first & second) <= 12 + 8, "more was run again than the dead one held"
    if point != "after claim":
        assert first, "its engine was asked"
    if point == "after publish":
        assert any(resumed for _, resumed in again)
    if point in ("inside commit", "after commit"):
        assert first - second, "what was committed was run again"
