"""Host memory stays flat over 8,000 requests of every kind, aborted ones too; `make soak` sends 100,000."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.timeout(300)
def test_memory_is_flat_over_8000_requests() -> None:
    """In a process of its own: what other tests have left in the allocator is not this engine's growth."""
    soak = subprocess.run(
        [sys.executable, "-m", "tests.engine.soak", "--requests", "8000"], capture_output=True, text=True
    )
    assert soak.returncode == 0, soak.stdout + soak.stderr
