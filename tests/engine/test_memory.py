"""Host memory stays flat over 20,000 requests of every kind, aborted ones among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.run import engine_of
from tests.engine.soak import MAX_GROWTH_BYTES, MAX_GROWTH_OBJECTS, SETTINGS, growth, soak
from tests.engine.tiny_models import save_wordy_model


@pytest.mark.timeout(300)
def test_memory_is_flat_over_20000_requests(tmp_path: Path) -> None:
    engine = engine_of(save_wordy_model(tmp_path), **SETTINGS)
    readings = soak(engine, 20_000)
    bytes_more, objects_more = growth(readings)
    assert bytes_more < MAX_GROWTH_BYTES, readings
    assert objects_more < MAX_GROWTH_OBJECTS, readings
