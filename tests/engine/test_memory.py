"""Host memory stays flat over 20,000 requests of every kind, aborted ones among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.run import engine_of
from tests.engine.soak import SETTINGS, has_grown, soak
from tests.engine.tiny_models import save_wordy_model


@pytest.mark.timeout(300)
def test_memory_is_flat_over_20000_requests(tmp_path: Path) -> None:
    engine = engine_of(save_wordy_model(tmp_path), **SETTINGS)
    readings = soak(engine, 20_000)
    assert not has_grown(readings), readings
