"""The engine as a child process: `python -m engine.process FD CONFIG_JSON`.

FD is one end of a socket pair that the parent passed down; `engine.messages` says what crosses it. The loop
takes commands without waiting while there is work, waits for them when there is none, and sends one frame per
step. End of file ends the process with status 0, whatever it was doing, a download or a long step included:
so a parent that dies, however it dies, takes its engine with it. SIGINT and SIGTERM are ignored: they are for
the parent, which drains and then closes the socket.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from engine.config import EngineConfig
from engine.cores import wait_without_spinning
from engine.errors import EngineError
from engine.messages import (
    HEADER,
    Abort,
    Command,
    Fatal,
    Loading,
    Ready,
    Report,
    Step,
    Submit,
    command_decoder,
    encode_frame,
)
from penstock.telemetry.logs import set_up

if TYPE_CHECKING:
    from engine.engine import Engine

log = logging.getLogger(__name__)

RECV_BYTES: Final = 1 << 18
_SILENCE_S: Final = 1.0
"""A report is made at the end of a step that comes so long after the last report, outputs or none."""


class PeerGone(Exception):
    """The other end is closed: nobody reads what we would compute."""


class Link:
    """Frames over a non-blocking socket.

    While a send waits for a slow reader, commands are still taken in: a peer that writes before it reads
    finds us reading, so the two never wait for each other.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._received = bytearray()
        self._commands: deque[Command] = deque()

    def send(self, report: Report) -> None:
        """Sends one frame whole. Raises PeerGone."""
        rest = memoryview(encode_frame(report))
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                if self._wait(selectors.EVENT_READ | selectors.EVENT_WRITE) & selectors.EVENT_READ:
                    self._receive()
            except (BrokenPipeError, ConnectionResetError) as error:
                raise PeerGone from error

    def commands(self, *, wait: bool) -> Iterator[Command]:
        """Every command that has arrived whole; with `wait`, at least one. Raises PeerGone."""
        while wait and not self._commands:
            self._wait(selectors.EVENT_READ)
            self._receive()
        while self._receive():
            pass
        while self._commands:
            yield self._commands.popleft()

    def _wait(self, events: int) -> int:
        """Blocks until one of these is possible; returns those that are."""
        self._selector.modify(self._sock, events)
        return self._selector.select()[0][1]

    def _receive(self) -> bool:
        """Takes in what is there, up to a limit. False if that was nothing. Raises PeerGone."""
        try:
            data = self._sock.recv(RECV_BYTES)
        except BlockingIOError:
            return False
        except ConnectionResetError as error:
            raise PeerGone from error
        if not data:
            raise PeerGone
        self._received += data
        self._decode()
        return True

    def _decode(self) -> None:
        start = 0
        while len(self._received) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(self._received, start)
            end = start + HEADER.size + size
            if len(self._received) < end:
                break
            self._commands.append(command_decoder.decode(self._received[start + HEADER.size : end]))
            start = end
        del self._received[:start]


def serve(link: Link, engine: Engine) -> None:
    """Runs steps until the peer goes. Raises PeerGone, and whatever a step raises."""
    said_at = time.monotonic()
    while True:
        aborted = False
        for command in link.commands(wait=not engine.has_work):
            match command:
                case Submit(requests=requests, last=last):
                    engine.add(requests, last=last)
                case Abort(request_ids=request_ids, samples=samples):
                    engine.abort(request_ids, samples)
                    aborted = True
        outputs = engine.step()
        # An abort says something too: there is room again. And whoever waits for the end of a long prefill,
        # or of a grammar's compilation, should hear that we live.
        if outputs or aborted or time.monotonic() - said_at >= _SILENCE_S:
            said_at = time.monotonic()
            scheduler = engine.scheduler
            link.send(
                Step(
                    outputs=outputs,
                    num_running=scheduler.num_running,
                    num_waiting=scheduler.num_waiting,
                    num_free_blocks=scheduler.blocks.num_free,
                    num_preemptions=scheduler.num_preemptions,
                    num_prompt_tokens=scheduler.num_prompt_tokens,
                    num_cached_tokens=scheduler.num_cached_tokens,
                    num_steps=engine.num_steps,
                    num_computed_tokens=engine.num_computed_tokens,
                    busy_us=engine.busy_ns // 1000,
                )
            )


def load(link: Link, config: EngineConfig) -> Engine:
    """Loads the engine and says Ready. Raises EngineError and PeerGone."""
    link.send(Loading("starting torch"))
    wait_without_spinning(os.environ)
    from engine.engine import Engine

    engine = Engine(config, on_phase=lambda phase: link.send(Loading(phase)))
    gc.collect()
    gc.freeze()  # weights and modules live as long as the process: later collections need not walk them
    link.send(
        Ready(
            model=config.model,
            model_path=str(engine.model_path),
            fingerprint=engine.fingerprint,
            max_model_len=engine.sizes.max_model_len,
            vocab_size=engine.vocab_size,
            max_num_seqs=engine.sizes.max_num_seqs,
            num_blocks=engine.sizes.num_blocks,
            block_size=engine.sizes.block_size,
            eos_token_ids=engine.eos_token_ids,
        )
    )
    return engine


def exit_on_hang_up(sock: socket.socket) -> threading.Event:
    """Ends the process when the peer closes, even while nothing reads the socket: it may be downloading
    weights or be in a long step. Setting the event that comes back leaves the process to its own end.

    A thread, not PR_SET_PDEATHSIG: that fires when the thread that started us ends, and on Linux only.
    """
    ending = threading.Event()

    def watch() -> None:
        poll = select.poll()
        poll.register(sock, 0)  # hang-ups and errors are always reported
        poll.poll()
        if not ending.is_set():
            os._exit(0)

    threading.Thread(target=watch, name="hang-up", daemon=True).start()
    return ending


def main(argv: list[str]) -> int:
    """Exit status: 0 when the peer went away, 1 after a Fatal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    set_up(text="engine: %(message)s")
    for chatty in ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3"):  # a line per request of a download
        logging.getLogger(chatty).setLevel(logging.WARNING)
    sock = socket.socket(fileno=int(argv[1]))
    ending = exit_on_hang_up(sock)
    link = Link(sock)
    try:
        try:
            config = msgspec.json.decode(argv[2], type=EngineConfig)
            serve(link, load(link, config))
        except (EngineError, msgspec.ValidationError) as error:
            log.error("%s", error)
            ending.set()
            link.send(Fatal(str(error)))
        except PeerGone:
            raise
        except Exception as error:
            log.exception("the engine cannot go on")
            ending.set()
            link.send(Fatal(f"internal error: {error!r}"))
    except PeerGone:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
