"""A gateway in a process of its own, as `penstock gateway` starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


class GatewayProcess:
    """A running gateway without keys; use it in a `with`, which drains it."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        command = [sys.executable, "-m", "producer.cli", "gateway", "--redis", redis_url, "--port", "0"]
        self._log = folder / "gateway.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([*command, "--folder", str(folder / "gateway")], stderr=log)

    def __enter__(self) -> GatewayProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def url(self) -> str:
        """Where it listens, once it does."""
        while self._process.poll() is None:
            if match := re.search(r"listening on (http://\S+)", self._log.read_text()):
                return match[1]
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        raise RuntimeError(f"the gateway did not start:\n{self._log.read_text()}")
