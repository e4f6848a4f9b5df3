"""The program `penstock` as a process, with a stand-in for the consumer, and helpers to watch them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from producer.cli import main

STAND_IN = Path(__file__).parent / "stand_in"
STAND_IN_PATH = f"{STAND_IN}{os.pathsep}{Path(__file__).parents[2]}"
"""For PYTHONPATH: the stand-in for the consumer, and behind it the very code that is tested."""


class Program:
    """Runs the CLI, or the stand-in, in a folder of the test's own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "executed.txt"
        self._stack = stack

    def start(self, *arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `penstock ARGUMENTS`."""
        return self._start([sys.executable, "-m", "producer.cli", *map(str, arguments)], env or {})

    def run(self, *arguments: object, env: dict[str, str] | None = None, stdin: str = "") -> Result:
        """Run `penstock ARGUMENTS` to its end."""
        process = self.start(*arguments, env=env)
        out, err = process.communicate(stdin, timeout=60)
        return Result(process.returncode, out, err)

    def call(self, *arguments: object) -> Result:
        """`penstock ARGUMENTS` within this process: for verbs that end at once."""
        environment = {"PENSTOCK_DATA": str(self.data)} if "--redis" not in arguments else {}
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(sys, "argv", ["penstock", *map(str, arguments)]),
            mock.patch.dict(os.environ, {"PENSTOCK_MODEL": "stand-in", **environment}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        return Result(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def stand_in(self, url: str, delay_s: float = 0.0) -> subprocess.Popen[str]:
        """Start a stand-in consumer of a server."""
        command = [sys.executable, "-m", "consumer", "--redis", url, "--model", "stand-in"]
        return self._start(command, {"STAND_IN_DELAY_S": str(delay_s)})

    def executed(self) -> list[str]:
        """Prompts that were answered, one for each time."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _start(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK")}
        stand_in = {"PYTHONPATH": STAND_IN_PATH, "STAND_IN_LOG": str(self.log), "PENSTOCK_MODEL": "stand-in"}
        named = "PENSTOCK_REDIS" in env or not {"--redis", "--data"}.isdisjoint(command)
        place = {} if named else {"PENSTOCK_DATA": str(self.data)}
        place["PENSTOCK_GATEWAY_PORT"] = "0"  # tests run beside each other
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            command, cwd=self.folder, env={**clean, **stand_in, **place, **env}, text=True, **pipes
        )
        self._stack.callback(_end, process)
        return process


class Result:
    """What a finished program said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def __repr__(self) -> str:
        return f"status {self.status}\nout: {self.out}\nerr: {self.err}"


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with ExitStack() as stack:
        program = Program(tmp_path, stack)
        yield program
    for process in servers(program.data):
        process.kill()
        process.wait(10)


def servers(folder: Path) -> list[psutil.Process]:
    """Embedded servers that run on a data folder."""
    return [process for process in psutil.process_iter(["name"]) if _serves(process, folder)]


def _serves(process: psutil.Process, folder: Path) -> bool:
    try:
        return (
            "valkey" in process.name()
            and process.cwd() == str(folder)
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def until(condition: Callable[[], Any], timeout_s: float = 20) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


async def eventually(condition: Callable[[], Any], timeout_s: float = 20) -> None:
    """Wait for a condition, letting others run."""
    await asyncio.to_thread(until, condition, timeout_s)


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write an input: dicts as JSON, text as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read an output."""
    return [json.loads(line) for line in path.read_text().splitlines()]
