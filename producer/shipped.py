"""Files that come with penstock: the tiny model and the demo's prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from producer.errors import UsageError

_HERE: Final = Path(__file__).resolve().parent


def default_model() -> Path:
    """The tiny model's folder."""
    return _find("models/tiny", "config.json")


def demo_prompts() -> Path:
    """Rows of the demo, each with its expected answer."""
    return _find("prompts.jsonl")


def _find(name: str, witness: str = "") -> Path:
    """From the wheel's copy, else from the clone that this file lies in."""
    for folder in (_HERE / "data", _HERE.parent / "examples"):
        if (folder / name / witness).is_file():
            return folder / name
    raise UsageError(f"this installation of penstock lacks {name}; name a model with --model")
