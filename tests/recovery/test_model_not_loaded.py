"""A model that no start will ever load: said once, in the engine's words, and not tried again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Server

WORDS = "architecture Nope is not supported"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A model's folder that the engine refuses."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Nope"], "model_type": "nope"}))
    return folder


def test_the_consumer_ends_with_a_status_of_its_own(server: Server, redis_url: str, broken: Path) -> None:
    command = [sys.executable, "-m", "consumer", "--redis", redis_url, "--model", str(broken)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 3
    assert WORDS in process.stderr.splitlines()[-1]


def test_up_stops_at_once(server: Server, redis_url: str, broken: Path) -> None:
    command = [sys.executable, "-m", "producer.cli", "up", "--redis", redis_url, "--model", str(broken)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    said = process.stderr.splitlines()
    assert said[-1] == "penstock: the consumer can't load its model; its last line says why"
    assert WORDS in said[-2]
    assert "starting it again" not in process.stderr
