"""Jobs that are followed while there is trouble, and the consumer whose log tells of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.client import Client
from penstock.keys import Keys
from penstock.messages import Event, Job, SamplingParams
from tests.conftest import Server
from tests.consumer.scripted_engine import token_at
from tests.recovery.processes import ConsumerProcess, check_stream, events_of

LANE = Keys().jobs("standard")
NUM_TOKENS = 30
BEGINS = "WARNING consumer.outage: waiting for the server: "
ENDS = "WARNING consumer.outage: the server is well again"

Events = list[tuple[str, Event]]


class LoggedConsumer(ConsumerProcess):
    """A consumer process whose log can be read."""

    def __init__(self, *argv: str) -> None:
        self._log = tempfile.NamedTemporaryFile("r")  # noqa: SIM115 - closed with the process
        with open(self._log.name, "w") as log:
            self.process = subprocess.Popen([sys.executable, *argv], start_new_session=True, stderr=log)

    def said(self, words: str) -> int:
        """How many lines of the log have these words."""
        return sum(words in line for line in Path(self._log.name).read_text().splitlines())

    def clean_up(self) -> None:
        super().clean_up()
        print(Path(self._log.name).read_text())
        self._log.close()


class Crowd:
    """Jobs, every other one streamed, each followed from its beginning."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prompts: dict[str, str] = {}
        self.following: dict[str, asyncio.Task[Events]] = {}

    @property
    def num_ended(self) -> int:
        return sum(task.done() for task in self.following.values())

    async def join(self, count: int, label: str = "job", num_tokens: int = NUM_TOKENS) -> None:
        """Enqueue jobs and follow them."""
        params = SamplingParams(max_tokens=num_tokens)
        prompts = [f"{label} {n}" for n in range(count)]
        jobs = [Job(prompt=text, stream=n % 2 == 0, sampling_params=params) for n, text in enumerate(prompts)]
        ids = await self._client.submit_many(jobs)
        self._prompts |= dict(zip(ids, prompts, strict=True))
        self.following |= {job_id: asyncio.create_task(self._follow(job_id)) for job_id in ids}

    async def _follow(self, job_id: str) -> Events:
        return [item async for item in self._client.stream(job_id)]

    async def check(self, server: Server) -> None:
        """Wait for all ends; nothing was lost, doubled or changed, for the server nor for who followed."""
        async with asyncio.timeout(40):
            seen = await asyncio.gather(*self.following.values())
        with server.client() as plain:
            for job_id, events in zip(self.following, seen, strict=True):
                ids = list(self._prompts[job_id].encode())
                stored = events_of(plain, job_id)
                for kept in (events, stored):
                    tokens = check_stream(kept).usage.completion_tokens
                    text = "".join(chr(token_at(ids, position)) for position in range(tokens))
                    assert check_stream(kept).text == text, job_id
                assert stored[-1] == events[-1]
            assert plain.xlen(LANE) == 0

    async def abandon(self) -> None:
        for task in self.following.values():
            task.cancel()
        await asyncio.gather(*self.following.values(), return_exceptions=True)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None
