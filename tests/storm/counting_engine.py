"""The real engine, counting what it generates: `python -m tests.storm.counting_engine FOLDER FD CONFIG`."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.messages import Report, Step
from engine.process import Link, PeerGone, exit_on_hang_up, load, serve
from tests.storm.tally import Tally


class CountingLink(Link):
    """Counts a step's tokens before anybody hears of them: made is made, whoever reads it."""

    def __init__(self, sock: socket.socket, tally: Tally) -> None:
        super().__init__(sock)
        self._tally = tally

    def send(self, report: Report) -> None:
        if isinstance(report, Step):
            self._tally.add(report.outputs)
        super().send(report)


def main() -> None:
    """Entry point; otherwise as `engine.process`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="engine: %(message)s", stream=sys.stderr)
    folder, descriptor, config = sys.argv[1:]
    sock = socket.socket(fileno=int(descriptor))
    exit_on_hang_up(sock)
    link = CountingLink(sock, Tally(Path(folder)))
    try:
        serve(link, load(link, msgspec.json.decode(config, type=EngineConfig)))
    except PeerGone:
        return


if __name__ == "__main__":
    main()
