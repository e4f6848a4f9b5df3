"""Lock files: flock on a file that is never removed. A lock lives as long as anyone has its descriptor."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def take(file: IO[bytes], *, shared: bool = False) -> bool:
    """Lock an open file if that is possible now."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def let_go(file: IO[bytes]) -> None:
    """Unlock an open file for everyone who shares its descriptor."""
    fcntl.flock(file, fcntl.LOCK_UN)


def open_locked(path: Path) -> IO[bytes] | None:
    """The file, open and locked; None where another has the lock."""
    file = path.open("ab")
    if take(file):
        return file
    file.close()
    return None
