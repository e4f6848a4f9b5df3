"""Sampling defaults of a model: what its generation_config.json states where a job says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.errors import PenstockError
from penstock.messages import SamplingParams


class InvalidDefaults(PenstockError):
    """The model's generation_config.json states something out of range."""


class Defaults(Struct, frozen=True, kw_only=True):
    """What a job's absent parameters mean. Each field's own default is the neutral value."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    """The file's `max_new_tokens`, as vLLM takes it: for jobs without a `max_tokens`, no limit to others."""

    @classmethod
    def load(cls, folder: Path) -> Defaults:
        """Read the file, where there is one. An explicit `do_sample: false` means greedy.

        Raises InvalidDefaults for what no job may ask for either.
        """
        path = folder / "generation_config.json"
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        config["max_tokens"] = config.get("max_new_tokens")
        found = {name: config[name] for name in cls.__struct_fields__ if config.get(name) is not None}
        try:
            msgspec.convert(found, SamplingParams)
        except msgspec.ValidationError as error:
            raise InvalidDefaults(f"{path}: {error}") from None
        if "top_k" in found:
            found["top_k"] = max(found["top_k"], 0)  # some files write -1 for "all"
        if config.get("do_sample") is False:
            found["temperature"] = 0.0
        return cls(**found)

    def stated(self) -> dict[str, float]:
        """Those that differ from the neutral values, by the names that jobs have for them."""
        neutral = Defaults()
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value != getattr(neutral, name)}
