"""Logs as JSON: what a line holds, of a consumer and of the engine that it starts, and what it never does."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from penstock.messages import Job, SamplingParams
from penstock.sync import SyncClient
from penstock.telemetry.logs import JsonFormatter

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny"


def formatted(*args: Any, **extra: Any) -> dict[str, Any]:
    logger = logging.getLogger("somewhere")
    words, *rest = args
    record = logger.makeRecord(
        "somewhere", logging.WARNING, __file__, 1, words, tuple(rest), None, extra=extra
    )
    (line,) = JsonFormatter().format(record).splitlines()
    return json.loads(line)


def test_a_record_is_one_object_with_its_fields() -> None:
    line = formatted("job %s\nfailed", "a.1-0", job="a.1-0", path=Path("/x"))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "somewhere",
        "message": "job a.1-0\nfailed",
        "job": "a.1-0",
        "path": "/x",
    }


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("here")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "no", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: here")


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_consumer_and_its_engine_log_json_with_job_ids_and_no_text(
    how: str, redis_url: str, tmp_path: Path
) -> None:
    flags = ["--log-format", "json"] if how == "flag" else []
    environ = os.environ | ({"PENSTOCK_LOG_FORMAT": "json"} if how == "variable" else {})
    command = [sys.executable, "-m", "consumer", "--redis", redis_url, "--model", str(TINY), *flags]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen([*command, "--retry-delay-s", "0"], stderr=log, env=environ)
    try:
        with SyncClient(redis_url) as client:
            params = SamplingParams(max_tokens=4, temperature=0)
            asked = Job(prompt="What is 12 + 30?", sampling_params=params)
            answered = client.result(client.submit(asked), 60)
            refused = client.submit(replace(asked, model="other"))
            with pytest.raises(Exception, match="other"):
                client.result(refused, 60)
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"consumer", "engine"} <= {line["logger"].partition(".")[0] for line in lines}
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert "12 + 30" not in text
    assert answered.text.strip() not in [line["message"] for line in lines]
