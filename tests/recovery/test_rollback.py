"""A server that comes back without its last writes, under a consumer that knows of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.client import Client
from penstock.messages import Job, SamplingParams
from tests.conftest import Server
from tests.recovery.processes import ConsumerProcess
from tests.recovery.scripted_jobs import (
    check_all,
    requested,
    submit,
    until_ended,
    until_published,
)

LOG = "appendonlydir"


class Past:
    """The server's append-only log as it was, to go back to."""

    def __init__(self, server: Server, folder: Path) -> None:
        """Keep what is there now."""
        self._server, self._folder = server, folder
        shutil.copytree(server.folder / LOG, folder)

    def return_to(self) -> None:
        """Kill the server, and start it as it was: all that came later is lost."""
        self._server.kill()
        shutil.rmtree(self._server.folder / LOG)
        shutil.copytree(self._folder, self._server.folder / LOG)
        self._server.start()


@pytest.fixture
def durable(make_server: Callable[..., Server]) -> Server:
    """What is written is in the log at once, so that a copy of it is whole."""
    return make_server("--appendfsync", "always", aof=True)


def mixed_jobs(num_tokens: int) -> list[Job]:
    """Streamed and not, with one sample and with two."""
    return [
        Job(
            prompt=f"job {n}",
            stream=n % 2 == 0,
            sampling_params=SamplingParams(max_tokens=num_tokens, n=1 + n % 3 // 2),
        )
        for n in range(8)
    ]


@pytest.mark.parametrize("step_s", [0.02, 0.1], ids=["between steps", "during a step"])
async def test_a_claim_is_lost(
    durable: Server,
    tmp_path: Path,
    make_model: Callable[..., Path],
    start: Callable[..., ConsumerProcess],
    step_s: float,
) -> None:
    """The same consumer is given the same entries by the same token, while it still runs them."""
    model = make_model("model", step_s=step_s)
    async with Client(durable.url) as client:
        sent = await submit(client, mixed_jobs(80))
        past = Past(durable, tmp_path / "past")
        start(durable.url, model, max_num_seqs=16, lease_s=30.0)
        for one in sent[::2]:
            await until_published(client, one, 3)
        past.return_to()
        await until_ended(client, sent)
        check_all(durable, sent)
    first = sorted(f"{one.id}/1" for one in sent)
    assert sorted(requested(model))[: 2 * len(sent) : 2] == first, "handed out again with the same count"


async def test_a_claim_and_a_lease_of_an_earlier_run_are_lost(
    durable: Server, tmp_path: Path, make_model: Callable[..., Path], start: Callable[..., ConsumerProcess]
) -> None:
    """Others had published of these jobs: the run that comes after the return goes on behind that."""
    models = make_model("first", step_s=0.02), make_model("second", step_s=0.02)
    async with Client(durable.url) as client:
        sent = await submit(client, mixed_jobs(60))
        first = start(durable.url, models[0], max_num_seqs=16, lease_s=30.0)
        for one in sent[::2]:
            await until_published(client, one, 3)
        first.process.terminate()
        first.process.terminate()
        first.process.wait(10)
        past = Past(durable, tmp_path / "past")
        start(durable.url, models[1], max_num_seqs=16, lease_s=30.0)
        for one in sent[::2]:
            await until_published(client, one, 6)
        past.return_to()
        await until_ended(client, sent)
        check_all(durable, sent)


async def test_the_tails_of_streams_are_lost(
    durable: Server, tmp_path: Path, make_model: Callable[..., Path], start: Callable[..., ConsumerProcess]
) -> None:
    """The leases are still held, and what the jobs had published last is gone."""
    model = make_model("model", step_s=0.02)
    async with Client(durable.url) as client:
        sent = await submit(client, mixed_jobs(80))
        start(durable.url, model, max_num_seqs=16, lease_s=30.0)
        for one in sent[::2]:
            await until_published(client, one, 3)
        past = Past(durable, tmp_path / "past")
        for one in sent[::2]:
            await until_published(client, one, 7)
        past.return_to()
        await until_ended(client, sent)
        check_all(durable, sent)


async def test_ends_are_lost(
    durable: Server, tmp_path: Path, make_model: Callable[..., Path], start: Callable[..., ConsumerProcess]
) -> None:
    """Jobs whose ends were written are held again by a consumer that has forgotten them."""
    model = make_model("model", step_s=0.005)
    async with Client(durable.url) as client:
        sent = await submit(client, mixed_jobs(80))
        start(durable.url, model, max_num_seqs=16, lease_s=1.0)
        await until_published(client, sent[0], 2)
        past = Past(durable, tmp_path / "past")
        await until_ended(client, sent)
        past.return_to()
    async with Client(durable.url) as client:
        await until_ended(client, sent)
        check_all(durable, sent)
