"""A consumer with the scripted engine, in a process of its own: its arguments are URL, MODEL and SETTINGS.

With a fourth argument, a file, it is run under cProfile, and the file has its event loop's profile.
"""

from __future__ import annotations

import cProfile
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import redis

from consumer.__main__ import serve
from penstock.keys import Keys
from penstock.messages import decode_heartbeat
from tests.consumer.running import make_consumer

_START_TIMEOUT_S = 30


class ConsumerProcess:
    """A running consumer; use it in a `with`, which drains it."""

    def __init__(self, url: str, model: Path, profile: Path | None = None, **settings: Any) -> None:
        command = [sys.executable, "-m", "benchmarks.queue.consuming", url, str(model), json.dumps(settings)]
        self._log = (model / "consumer.log").open("ab")
        profiled = [] if profile is None else [str(profile)]
        self.process = subprocess.Popen([*command, *profiled], stderr=self._log)

    def __enter__(self) -> ConsumerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(40)  # longer than the grace that a drain gives
        finally:
            self.process.kill()
            self._log.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def engine_pid(self) -> int:
        """Process id of its child, the engine."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0])

    def wait_ready(self, client: redis.Redis) -> None:
        """Until its heartbeat says that it takes jobs."""
        end = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < end and self.process.poll() is None:
            beats: Any = client.hvals(Keys().consumers)
            if any(decode_heartbeat(beat).phase == "ready" for beat in beats):
                return
            time.sleep(0.01)
        raise RuntimeError("the consumer did not start")


def main() -> int:
    """Entry point."""
    url, model, settings, *profile = sys.argv[1:]
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    status = serve(lambda: make_consumer(url, Path(model), **json.loads(settings)))
    if profile:
        profiler.disable()
        profiler.dump_stats(profile[0])
    return status


if __name__ == "__main__":
    sys.exit(main())
