"""Engines whose runner is that of a device, on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.device_runner import DeviceRunner
from engine.engine import Engine
from tests.engine.run import engine_of


def engine_on_device(folder: Path, *, graphs: bool, **settings: Any) -> Engine:
    """An engine that works as it does on a GPU: sampled tokens stay where they are until a step is waited
    for, and, with graphs, decodes are padded and read fixed buffers."""
    engine = engine_of(folder, **settings)
    runner = DeviceRunner(engine.runner.model, engine.sizes, engine.eos_token_ids)
    runner.compile_steps(16)
    if graphs:
        runner.record_decodes()
    engine.runner = runner
    return engine
