"""Gateways in processes of their own, to kill and to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

START_TIMEOUT_S = 30


class GatewayProcess:
    """`penstock gateway`, on a free port where none is named."""

    def __init__(self, redis_url: str, folder: Path, *flags: str, port: int | None = None) -> None:
        if port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "producer.cli", "gateway", "--redis", redis_url, "--port", str(port)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK")}
        folder.mkdir(exist_ok=True)
        with (folder / f"{port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--folder", str(folder), *flags], env=clean, stdout=log, stderr=log
            )

    def answers(self) -> GatewayProcess:
        """Itself, once it answers."""
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if httpx.get(f"{self.url}/health").is_success:
                    return self
            except httpx.HTTPError:
                assert self.process.poll() is None, "the gateway did not start"
            assert time.monotonic() < end, "the gateway does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: to everybody else as if its machine were gone."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it finds out what it missed."""
        self.process.send_signal(signal.SIGCONT)
