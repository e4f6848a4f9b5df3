"""The consumer as a child process: started, kept running, drained.

`python -m consumer` is all that this package knows of the consumer. On an embedded server, each consumer
has a slot of the data folder: a lock file that the process inherits (so that a slot is taken exactly as long
as its consumer lives) and a stable name, under which a start takes over what a killed predecessor held.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from producer import locks
from producer.errors import PenstockError, UsageError

FLAGS_ARE_WRONG: Final = 2
"""Exit status of a consumer whose flags are wrong: starting it again would not help."""
MODEL_NOT_LOADED: Final = 3
"""Exit status of one whose engine says that it can't load the model: nor would it here."""

MAX_SLOTS: Final = 64
_STEADY_S: Final = 60.0
"""A consumer that ran this long did start; its next death begins the count anew."""
_MAX_FAILED_STARTS: Final = 4
_MAX_BACKOFF_S: Final = 15.0
_PR_SET_PDEATHSIG: Final = 1
_SAID_ABOVE: Final = "; its last line says why"


class ConsumerFailed(PenstockError):
    """The consumer does not start, or does not stay up."""


class Slot:
    """A place for one consumer on a data folder."""

    def __init__(self, number: int, lock: IO[bytes]) -> None:
        self.name = f"local-{number}"
        self.lock = lock

    def close(self) -> None:
        """Let go; the slot stays taken while a consumer that inherited it lives."""
        self.lock.close()


def take_slot(folder: Path) -> Slot:
    """The first free slot of the folder."""
    for number in range(1, MAX_SLOTS + 1):
        lock = locks.open_locked(folder / f"consumer-{number}.lock")
        if lock is not None:
            return Slot(number, lock)
    raise UsageError(f"{MAX_SLOTS} consumers run on {folder} already")


def any_alive(folder: Path) -> bool:
    """Whether a consumer runs on the folder's server."""
    for path in folder.glob("consumer-*.lock"):
        lock = locks.open_locked(path)
        if lock is None:
            return True
        lock.close()
    return False


def command(url: str, flags: Sequence[str]) -> list[str]:
    """The command line of a consumer."""
    return [sys.executable, "-m", "consumer", "--redis", url, *flags]


class Supervisor:
    """Keeps one consumer running until it is drained.

    `say` is told in words what becomes of it; `log` takes its output (None: the terminal).
    """

    def __init__(
        self,
        command: Sequence[str],
        say: Callable[[str], None],
        slot: Slot | None = None,
        log: Path | None = None,
        backoff_s: float = 0.5,
    ) -> None:
        self._command = list(command)
        self._say = say
        self._slot = slot
        self._log = log
        self._backoff_s = backoff_s
        self._process: asyncio.subprocess.Process | None = None
        self._draining = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def run(self) -> int:
        """Run until drained; the exit status of the consumer that was.

        Raises:
            ConsumerFailed: its flags are wrong, its model can't be loaded, or it fails again and again right
                after its start.
        """
        failures = 0
        try:
            while True:
                started = time.monotonic()
                status = await self._run_once()
                if self._draining.is_set():
                    # By SIGTERM itself: it was still starting, and holds nothing that could be drained.
                    return 0 if status == -signal.SIGTERM else status
                failures = 1 if time.monotonic() - started > _STEADY_S else failures + 1
                if status == MODEL_NOT_LOADED:
                    raise ConsumerFailed(f"the consumer can't load its model{self._tail() or _SAID_ABOVE}")
                if status == FLAGS_ARE_WRONG or failures >= _MAX_FAILED_STARTS:
                    raise ConsumerFailed(f"the consumer {describe(status)}{self._tail()}")
                pause = min(self._backoff_s * 2**failures, _MAX_BACKOFF_S)
                self._say(f"the consumer {describe(status)}; starting it again in {pause:.0f} s")
                if await self._drained_within(pause):
                    return 0
        finally:
            self.kill()
            if self._process is not None:
                await self._process.wait()

    def drain(self) -> None:
        """Ask the consumer to finish what it runs and to release the rest; `run` then returns."""
        self._draining.set()
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the consumer and its engine now. Its jobs are run again by whoever comes next."""
        self._draining.set()
        if self.pid is not None:
            os.killpg(self.pid, signal.SIGKILL)

    async def _run_once(self) -> int:
        output = self._log.open("ab") if self._log is not None else None
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us; we pass it on as a drain
                pass_fds=(self._slot.lock.fileno(),) if self._slot is not None else (),
                preexec_fn=_die_with_parent(),
            )
        finally:
            if output is not None:
                output.close()
        if self._draining.is_set():
            self.drain()
        return await self._process.wait()

    async def _drained_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            return False
        return True

    def _tail(self) -> str:
        if self._log is None:
            return ""
        lines = self._log.read_text(errors="replace").splitlines()[-12:]
        return f". The end of {self._log}:" + "".join(f"\n  {line}" for line in lines)


def describe(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux, have the kernel drain the consumer should we be killed: nobody else would stop it."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return in_child
