"""The demo's last words and exit status, with the stand-in for the consumer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from producer import demo, locks
from producer.demo import run_demo
from tests.producer.conftest import STAND_IN_PATH, Program, servers, write_rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # `python -m consumer` looks in the current folder first, then where PYTHONPATH says.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", STAND_IN_PATH)
    monkeypatch.setenv("PENSTOCK_GATEWAY_PORT", "0")
    monkeypatch.setattr("producer.dataset.model_flags", lambda model: ("--model", "stand-in"))
    return tmp_path / "demo"


def questions(path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    rows = [
        {
            "prompt": f"word {n}",
            "custom_id": f"kind{n % 3}-{n}",
            "expected": "?" if n < wrong else f"WORD {n}",
        }
        for n in range(60)
    ]
    write_rows(path, rows)
    monkeypatch.setattr(demo, "demo_prompts", lambda: path)


@pytest.mark.parametrize(
    ("wrong", "status", "words"), [(3, 0, "57 of 60 right (95.0%)"), (4, 1, "56 of 60 right")]
)
def test_enough_right_answers_make_a_good_demo(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: int,
    status: int,
    words: str,
) -> None:
    questions(folder.parent / "questions.jsonl", monkeypatch, wrong)
    assert run_demo(folder) == status
    out, err = capsys.readouterr()
    assert words in out
    assert re.search(r"watch it at http://127\.0\.0\.1:\d+ while it runs", err)
    assert "every one answered" in out
    assert "output tokens/s" in out
    assert f"All answers: {folder / 'answers.jsonl'}" in out.replace("\n", "")
    assert out.count("wrong") == wrong
    assert servers(folder) == []


def test_a_second_demo_begins_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions(folder.parent / "questions.jsonl", monkeypatch, 0)
    for _ in range(2):
        assert run_demo(folder) == 0
        assert "60 of 60 right" in capsys.readouterr().out
    assert (folder / "answers.jsonl").read_bytes().count(b"\n") == 60


def test_a_demo_beside_another_is_told_to_wait(program: Program) -> None:
    folder = program.folder / "demo"
    folder.mkdir()
    lock = locks.open_locked(folder / "demo.lock")
    assert lock is not None
    with lock:
        refused = program.call("demo", "--data", folder)
    assert refused.status == 1
    assert "another demo runs in" in refused.err
    assert "name another output" not in refused.err
