"""Runs one session: `python -m benchmarks.engine.worker SESSION.json REPORT.json`, as the benchmark does."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

from benchmarks.engine.session import Report, Session
from benchmarks.engine.shapes import SHAPES, write_folder
from benchmarks.engine.workloads import make_workload

SYSTEMS = {
    "ours": "ours",
    "transformers": "transformers_peer",
    "generate": "generate_peer",
    "vllm": "vllm_peer",
    "llama.cpp": "llama_cpp_peer",
    "accuracy": "accuracy",
    "profile": "step_profile",
    "redis": "through_redis",
}


def main() -> int:
    session = Session(**json.loads(Path(sys.argv[1]).read_text()))
    out = Path(sys.argv[2])
    report = Report()
    shape = SHAPES[session.model]
    workloads = [make_workload(name, shape.vocab_size) for name in session.workloads]
    with tempfile.TemporaryDirectory() as place:
        folder = write_folder(shape, Path(place) / shape.name)
        try:
            system = importlib.import_module(f"benchmarks.engine.{SYSTEMS[session.system]}")
            system.run(session, folder, workloads, report, out)
        except Exception:
            report.error = traceback.format_exc()[-3000:]
    report.save(out)
    return 1 if report.error else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A peer may wait for ever for the processes that it has started; who runs this ends them.
    os._exit(status)
