"""The page at a quicker pace than people need, so that tests do not wait for it."""

from __future__ import annotations

import pytest

from producer.gateway import depths, served
from producer.gateway.page import batches, board, life


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is at most a tenth of a second old."""
    for module, name in (
        (board, "TICK_S"),
        (board, "SAMPLE_S"),
        (depths, "FRESH_S"),
        (served, "FRESH_S"),
        (batches, "FRESH_S"),
        (life, "LOOK_S"),
    ):
        monkeypatch.setattr(module, name, 0.1)
