"""What the README and examples/clients show, run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Server
from tests.producer.conftest import Program

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(program: Program, make_server: Callable[..., Server]) -> str:
    server = make_server(tcp=True)
    program.stand_in(server.url)
    return server.url


def test_the_raw_python_client(url: str) -> None:
    client = [sys.executable, "-W", "error", str(ROOT / "examples" / "clients" / "client.py"), url]
    done = subprocess.run([*client, "hello"], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("HELLO\n", "")
    failed = subprocess.run([*client, "fail"], capture_output=True, text=True, timeout=30)
    assert (failed.returncode, failed.stderr) == (1, "engine_error: as asked\n")


def test_the_readme_s_client(url: str) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = code.replace("redis://127.0.0.1:6399", url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("WHAT IS 12 + 30?\n", "")


def test_the_readme_s_rows_are_rows(program: Program, url: str) -> None:
    (rows,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (program.folder / "questions.jsonl").write_text(rows)
    done = program.run("run", "questions.jsonl", "-o", "answers.jsonl", "--redis", url)
    assert done.status == 0, done
    assert "2 rows" in done.err


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/operations.md", "examples/clients/README.md"]
)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    named = re.findall(r"\b(?:docs|examples|benchmarks|kernels|penstock)/[\w./-]*\w", page.read_text())
    for target in targets:
        assert (page.parent / target).exists(), target
    for target in named:
        assert (ROOT / target).exists(), target
