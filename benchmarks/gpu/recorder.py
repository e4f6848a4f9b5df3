"""A pytest plugin: a JSON line when a test begins and when it has ended, and a share of the tests.

`-p benchmarks.gpu.recorder`; see `benchmarks.gpu.outcomes`, which reads them.
"""

from __future__ import annotations

import json
import os
from typing import Any

from benchmarks.gpu.outcomes import MESSAGE_LENGTH, RECORD, SHARD


def pytest_collection_modifyitems(items: list[Any]) -> None:
    place, _, count = os.environ.get(SHARD, "0/1").partition("/")
    items[:] = items[int(place) :: int(count)]


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    _append({"test": nodeid})


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    properties = {str(name): value for name, value in report.user_properties}
    _append(_entry(report, report.outcome, properties))


def pytest_collectreport(report: Any) -> None:
    if report.outcome != "passed":
        _append(_entry(report, report.outcome, {}))


def _entry(report: Any, result: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "test": report.nodeid,
        "result": result,
        "seconds": round(getattr(report, "duration", 0.0), 3),
        "message": str(report.longrepr)[-MESSAGE_LENGTH:] if result != "passed" else "",
        "properties": properties,
    }


def _append(entry: dict[str, Any]) -> None:
    path = os.environ.get(RECORD)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(entry) + "\n")
