"""Outcomes of tests, as they come: a run that crashes or hangs keeps what it had, and names the culprit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD = "PENSTOCK_TEST_RECORD"
"""Environment variable with the path of the file that `benchmarks.gpu.recorder` appends to."""
SHARD = "PENSTOCK_TEST_SHARD"
"""`1/4`: of every four tests of a file the second, so that several processes share it."""
MESSAGE_LENGTH = 1500


@dataclass
class Outcome:
    """Of one test."""

    test: str
    """Its id, from the file's name on."""
    result: str
    """passed, skipped, failed, crashed or timed out; `failed` too where a fixture or the import did."""
    seconds: float = 0.0
    message: str = ""
    properties: dict[str, Any] = field(default_factory=dict)

    @property
    def is_bad(self) -> bool:
        """Whether it speaks against what it tests. A skipped test says nothing."""
        return self.result not in ("passed", "skipped")

    @property
    def file(self) -> str:
        return self.test.split("::")[0]


def read_outcomes(record: Path, file: str, ending: str) -> list[Outcome]:
    """From a recorder's file, of tests of `file`. One that began and did not end has the given ending."""
    started: dict[str, None] = {}
    found: dict[str, Outcome] = {}
    lines = record.read_text().splitlines() if record.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # the line that a killed process was writing
            continue
        _, _, test = entry["test"].partition("::")
        test = f"{file}::{test}" if test else file
        if "result" not in entry:
            started[test] = None
            continue
        outcome = Outcome(test, entry["result"], entry["seconds"], entry["message"], entry["properties"])
        if test not in found or found[test].result == "passed":
            found[test] = outcome
    return [*found.values(), *(Outcome(test, ending) for test in started if test not in found)]
