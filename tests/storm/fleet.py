"""The consumers of a storm: kept running, whatever happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from msgspec import Struct

from penstock.keys import GROUP, Keys
from penstock.link import Link
from penstock.presence import alive_consumers
from producer.shipped import default_model

LANE = "standard"
WATCH_S = 0.1


class FleetSettings(Struct, frozen=True, kw_only=True):
    """How its consumers are run."""

    url: str
    folder: Path
    """For logs and tallies."""
    size: int
    lease_s: float
    max_num_seqs: int = 64
    """Enough that one consumer can take what the others leave behind."""


class Member:
    """One place in the fleet, and the process that has it now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.name = ""
        """The stable part of the process's name as a consumer."""
        self.started_at = 0.0
        self.stopped = False
        self.leaving = False
        """It was killed, or asked to go: its end is no surprise."""
        self.held_at_engine_kill: set[str] = set()

    @property
    def pid(self) -> int:
        """Of the consumer, which leads a process group of its own."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """To the consumer, or to its engine as well; nothing where it is gone already."""
        if self.process is None or self.process.poll() is not None:
            return  # its number may be somebody else's by now
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def engine(self) -> psutil.Process | None:
        """Its engine process, if it has one now."""
        try:
            children = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0] if children else None


class Fleet:
    """Starts consumers, and another in the place of each that ends."""

    def __init__(self, settings: FleetSettings, link: Link) -> None:
        self._settings = settings
        self._link = link
        self._incarnations = 0
        self.members = [Member(index) for index in range(settings.size)]
        self.surprises: list[str] = []
        """Consumers that ended though nobody had made them."""
        self.start_times: list[float] = []
        """Seconds from a consumer's start to its first lease."""

    def start(self, member: Member) -> None:
        """Put a new process in a member's place.

        Every other place keeps its stable name, so that a start takes over what the last process left there;
        the others have a new one each time, so that leases have to expire.
        """
        self._incarnations += 1
        settings = self._settings
        keeps = member.index % 2 == 0
        member.name = f"m{member.index}" if keeps else f"m{member.index}-{self._incarnations}"
        flags = {
            "redis": settings.url,
            "model": default_model(),
            "name": member.name,
            "lease-s": settings.lease_s,
            "grace-s": 1.0,
            "max-num-seqs": settings.max_num_seqs,
            "num-threads": 1,
        }
        argv = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        with (settings.folder / f"m{member.index}.log").open("ab") as log:
            member.process = subprocess.Popen(
                [sys.executable, "-m", "tests.storm.counted_consumer", str(settings.folder), *argv],
                start_new_session=True,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        member.started_at = time.monotonic()
        member.stopped = member.leaving = False
        member.held_at_engine_kill = set()

    async def watch(self) -> None:
        """Start what has ended, for ever."""
        while True:
            for member in self.members:
                process = member.process
                if process is None:
                    self.start(member)
                elif process.poll() is not None:
                    if not member.leaving:
                        words = f"{member.name} ended by itself, status {process.returncode}"
                        self.surprises.append(words)
                        print(f"!! {words}", flush=True)
                    self.start(member)
            await asyncio.sleep(WATCH_S)

    async def held(self) -> dict[int, set[str]]:
        """By member, the entries that its present process has leases of, as `LANE.ENTRY`."""
        rows = await self._link.command("XPENDING", Keys().jobs(LANE), GROUP, "-", "+", 10_000)
        held: dict[int, set[str]] = {member.index: set() for member in self.members}
        by_name = {member.name: member.index for member in self.members}
        for entry, consumer, _, _ in rows:
            index = by_name.get(consumer.decode().rpartition(".")[0])
            if index is not None:
                held[index].add(f"{LANE}.{entry.decode()}")
        return held

    async def ready(self) -> set[int]:
        """Members whose engine can take jobs now."""
        beats = await alive_consumers(self._link, Keys())
        names = {name.rpartition(".")[0] for name, beat in beats.items() if beat.phase == "ready"}
        return {
            member.index
            for member in self.members
            if member.name in names and not member.stopped and not member.leaving
        }

    async def end(self) -> None:
        """Drain everyone, and leave no process behind."""
        for member in self.members:
            member.leaving = True
            member.signal(signal.SIGCONT, group=True)
            member.signal(signal.SIGTERM)
        for member in self.members:
            if member.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(member.process.wait, 20)
                member.signal(signal.SIGKILL, group=True)
