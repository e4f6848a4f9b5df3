"""The engine as a child process: start, send commands, read reports. See `engine.messages` for the frames."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from engine.config import EngineConfig
from engine.messages import (
    HEADER,
    Abort,
    Command,
    Report,
    Submit,
    encode_frame,
    report_decoder,
)
from engine.request import Request
from penstock.errors import PenstockError

log = logging.getLogger(__name__)

_READ_LIMIT = 1024 * 1024
_POLL_S = 0.01
_KILLED_S = 60.0
"""How long the system may take to end a killed process, whose memory may be large."""
_LEFT_S = 3.0
"""The same when nothing is to come after it."""


class EngineStartFailed(PenstockError):
    """The engine could not load its model; the message is the engine's own."""


class ModelNotLoaded(EngineStartFailed):
    """The engine said itself why it can't load the model: another start would end the same way."""


class EngineDied(PenstockError):
    """The engine process ended without being asked to."""


class EngineProcess:
    """One running child. A new one is started after a death; see `start_engine`."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._awaited = False  # `reports` waits for the child, not for whoever takes its reports
        self._heard = False

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def submit(self, requests: Sequence[Request], *, last: bool) -> None:
        """Hand requests over; they are admitted in order. `last`: the queue holds no more for now."""
        self._send(Submit(list(requests), last))

    def abort(self, request_ids: Sequence[str], samples: Sequence[tuple[str, int]]) -> None:
        """Drop requests, and single samples of requests. Output that is on its way may still arrive."""
        self._send(Abort(list(request_ids), list(samples)))

    async def reports(self) -> AsyncIterator[Report]:
        """Reports in order, until the child ends.

        Raises:
            EngineDied: the socket closed.
        """
        while True:
            self._awaited = True
            try:
                head = await self._reader.readexactly(HEADER.size)
                body = await self._reader.readexactly(HEADER.unpack(head)[0])
            except (asyncio.IncompleteReadError, ConnectionError):
                raise EngineDied(f"the engine process {self.pid} {await self._ending()}") from None
            finally:
                self._awaited = False
            self._heard = True
            yield report_decoder.decode(body)

    def take_silence(self) -> bool:
        """Whether reports are waited for and none has come since the last call."""
        heard, self._heard = self._heard, False
        return self._awaited and not heard

    def kill(self) -> None:
        """SIGKILL, which also ends what is stopped or deadlocked; `reports` then tells of its death."""
        self._process.kill()
        # Not left to the child's end: a driver that hangs may keep even a killed process.
        self._writer.transport.abort()

    async def stop(self, grace_s: float = 2.0) -> None:
        """Close the socket, which ends the child; kill it where that takes too long."""
        # Not close(): it waits until all is written, and a child that hangs reads nothing any more.
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        if not await self._ended(grace_s):
            self._process.kill()
            if not await self._ended(_LEFT_S):
                log.error("the engine process %d is killed and does not end: it is left behind", self.pid)

    def _send(self, command: Command) -> None:
        # Not awaited: what is in flight is bounded by credit, and the reader must never wait for the writer.
        if not self._writer.is_closing():
            self._writer.write(encode_frame(command))

    async def _ending(self) -> str:
        """How it ended, once it has: in words."""
        if not await self._ended(1.0):
            self._process.kill()
            if not await self._ended(_KILLED_S):
                return f"was killed and has not ended in {_KILLED_S:g} s"
        code = self._process.returncode
        return f"ended (signal {-code})" if code < 0 else f"ended (exit status {code})"

    async def _ended(self, within_s: float) -> bool:
        """Whether it ends within this time. In no thread, whose wait nothing could break off."""
        end = time.monotonic() + within_s
        while self._process.poll() is None:
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(_POLL_S)
        return True


async def start_engine(config: EngineConfig, *, command: Sequence[str] = ()) -> EngineProcess:
    """Start the child; it reports `Loading` until it reports `Ready` or `Fatal`.

    `command` replaces `python -m engine.process`: any program that speaks the same frames on the socket whose
    file descriptor is its first argument, with the configuration as JSON in the second.
    """
    ours, theirs = socket.socketpair()
    argv = list(command) or [sys.executable, "-m", "engine.process"]
    with theirs:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns as soon as the child is forked
            [*argv, str(theirs.fileno()), msgspec.json.encode(config).decode()],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_READ_LIMIT)
    return EngineProcess(process, reader, writer)
