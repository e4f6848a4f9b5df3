"""The most that a process and all that it has started had resident, by the kernel's own high-water marks.

At each look the marks (VmHWM of /proc/PID/status) of those that live are added up, and the greatest sum
counts. A mark is never missed; processes that share pages are counted with them, each.
"""

from __future__ import annotations

import threading
from pathlib import Path

_PROC = Path("/proc")
_PAUSE_S = 0.2


class TreeMemory:
    """Looks now and then, in a thread of its own, from `with` to its end."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(high_water_bytes(pid) for pid in tree(self._pid)))
            if self._ended.wait(_PAUSE_S):
                return


def tree(pid: int) -> list[int]:
    """The process and its descendants, as far as they live; those whose parents have died are lost."""
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        for thread in _entries(_PROC / str(one) / "task"):
            left += map(int, _text(thread / "children").split())
    return found


def high_water_bytes(pid: int) -> int:
    """VmHWM; 0 of a process that is gone."""
    for line in _text(_PROC / str(pid) / "status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has just ended, or this is no Linux
        return ""
