"""Rows of a dataset: what is read, what is refused and in which words."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from penstock.messages import MAX_JOB_BYTES, Job, Message, SamplingParams
from producer.errors import UsageError
from producer.rows import BadRow, Row, parse_row, read_rows, survey


def row(**fields: Any) -> Row | BadRow:
    return parse_row(4, json.dumps(fields).encode())


def test_a_row_is_a_job_and_what_is_expected_of_it() -> None:
    found = row(prompt="2+2?", custom_id="a", expected="4", sampling_params={"max_tokens": 3})
    assert found == Row(
        4, Job(prompt="2+2?", custom_id="a", sampling_params=SamplingParams(max_tokens=3)), "4"
    )


def test_messages() -> None:
    found = row(messages=[{"role": "user", "content": "hi"}])
    assert found == Row(4, Job(messages=[Message("user", "hi")]))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 5: not valid JSON in UTF-8"),
        (b'{"prompt": "\xff"}', "not valid JSON in UTF-8"),
        (b"[1]", "line 5: a row is a JSON object with `prompt` or `messages`"),
        (b'"text"', "line 5: a row is a JSON object"),
        (b"{}", "line 5: a job has exactly one of"),
        (b'{"prompt": ""}', "line 5: `prompt` is empty"),
        (b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "are given"),
        (b'{"prompt": "a", "expected": 4}', "line 5: `expected` must be a string"),
        (b'{"promt": "a"}', "line 5: unknown field `promt` at `$`; did you mean `prompt`?"),
        (b'{"prompt": "a", "row": 3}', "line 5: `row` is filled in by the run; leave it out"),
        (
            b'{"prompt": "a", "kind": "score", "expected": "b"}',
            "line 5: `expected` is a text, and nothing is generated for a `score`",
        ),
        (
            b'{"prompt": "a", "kind": "embed", "sampling_params": {"n": 2}}',
            "line 5: an `embed` job generates nothing; leave out `n`",
        ),
        (b'{"prompt": "a", "sampling_params": {"top_p": 2}}', "<= 1.0 - at `$.sampling_params.top_p`"),
        (b'{"prompt": "a", "sampling_params": {"temperature": NaN}}', "line 5: not valid JSON"),
    ],
)
def test_bad_rows_say_why(line: bytes, words: str) -> None:
    found = parse_row(4, line + b"\n")
    assert isinstance(found, BadRow)
    assert found.error.type == "invalid_job"
    assert words in found.error.message


def test_a_bad_row_keeps_its_label() -> None:
    found = row(promt="x", custom_id="seven")
    assert isinstance(found, BadRow)
    assert found.custom_id == "seven"


def test_overlong_lines_are_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        for _ in range(40):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"prompt": "b"}')
    tracemalloc.start()
    rows = [parse_row(number, line) for number, line in read_rows(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(rows[0], BadRow)
    assert rows[0].error.type == "job_too_large"
    assert rows[1] == Row(1, Job(prompt="b"))
    assert peak < 4 * MAX_JOB_BYTES


def test_lines_are_counted_and_blank_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\n  \n{"prompt": "b"}')
    assert [(n, parse_row(n, line)) for n, line in read_rows(path)] == [
        (0, Row(0, Job(prompt="a"))),
        (3, Row(3, Job(prompt="b"))),
    ]
    assert survey(path).lines == 4


def test_survey_knows_a_file_again(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"")
    assert survey(path).lines == 0
    path.write_bytes(b"a\nb\n")
    first = survey(path)
    assert first.lines == 2
    assert survey(path) == first
    path.write_bytes(b"a\nc\n")
    assert survey(path).fingerprint != first.fingerprint


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.jsonl can't be read: No such file"):
        survey(tmp_path / "none.jsonl")
