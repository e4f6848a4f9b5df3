"""The output file: written once a row, recovered after a death, held by one process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from penstock.messages import Completion, Done, Error, Failed, Score, TokenLogprob, Usage
from producer.answers import (
    Answer,
    Output,
    RowSet,
    RunState,
    answer_of,
    load_state,
    read_answers,
    save_state,
    state_path,
)
from producer.errors import RunError, UsageError


def done(text: str) -> Done:
    usage = Usage(prompt_tokens=2, completion_tokens=3)
    return Done(outputs=[Completion(text=text, finish_reason="stop")], usage=usage, model="m", custom_id="c")


def test_lines_read_as_the_documentation_says(tmp_path: Path) -> None:
    failed = Failed(error=Error(type="engine_error", message="boom"))
    with Output(tmp_path / "out.jsonl") as output:
        assert output.write(answer_of(0, done("hello"), None))
        assert output.write(answer_of(1, done(" 4 "), "4"))
        assert output.write(answer_of(2, failed, None))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    assert lines == [
        {"row": 0, "custom_id": "c", "text": "hello", "finish_reason": "stop", "usage": usage},
        {"row": 1, "custom_id": "c", "text": " 4 ", "finish_reason": "stop", "usage": usage, "correct": True},
        {"row": 2, "error": {"type": "engine_error", "message": "boom", "retryable": False}},
    ]


def test_a_line_has_all_that_was_asked_for(tmp_path: Path) -> None:
    logprob = TokenLogprob(token_id=7, token="a", logprob=-0.5, rank=1)
    usage = Usage(prompt_tokens=2, completion_tokens=3)
    outputs = [
        Completion(text="a", finish_reason="stop", logprobs=[logprob]),
        Completion(text="b", finish_reason="repetition", index=1, logprobs=[logprob]),
    ]
    several = Done(outputs=outputs, usage=usage, model="m", prompt_logprobs=[logprob])
    score = Done(outputs=[], usage=usage, model="m", score=Score(logprob=-0.5, tokens=[logprob]))
    embedding = Done(outputs=[], usage=usage, model="m", embedding=[0.5, 0.25])
    with Output(tmp_path / "out.jsonl") as output:
        for row, done in enumerate((several, score, embedding)):
            assert output.write(answer_of(row, done, "a" if row == 0 else None))
        assert (output.tally.answered, output.tally.correct) == (3, 1)
    first, second, third = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    token = {"token_id": 7, "token": "a", "logprob": -0.5, "rank": 1}
    assert (first["text"], first["finish_reason"], first["correct"]) == ("a", "stop", True)
    assert first["logprobs"] == first["prompt_logprobs"] == [token]
    assert [(out["text"], out["finish_reason"]) for out in first["outputs"]] == [
        ("a", "stop"),
        ("b", "repetition"),
    ]
    counts = {"prompt_tokens": 2, "completion_tokens": 3}
    assert second == {"row": 1, "usage": counts, "score": {"logprob": -0.5, "tokens": [token]}}
    assert third == {"row": 2, "usage": counts, "embedding": [0.5, 0.25]}
    answers = list(read_answers(tmp_path / "out.jsonl"))
    assert answers[0].outputs == outputs


def test_a_row_is_written_once_also_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path) as output:
        assert output.write(answer_of(7, done("a"), "a"))
        assert not output.write(answer_of(7, done("b"), "a"))
    with Output(path) as output:
        assert not output.write(answer_of(7, done("c"), "a"))
        assert (output.tally.rows, output.tally.correct, output.tally.completion_tokens) == (1, 1, 3)
    assert [answer.text for answer in read_answers(path)] == ["a"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path) as output:
        output.write(answer_of(0, done("a"), None))
        output.write(answer_of(1, done("b"), None))
    os.truncate(path, path.stat().st_size - cut)
    with Output(path) as output:
        assert 0 in output.rows
        assert 1 not in output.rows
        output.write(answer_of(1, done("b"), None))
    assert [answer.text for answer in read_answers(path)] == ["a", "b"]


def test_foreign_lines_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"row": 0, "text": "a"}\nmy notes\n')
    with pytest.raises(RunError, match=r"a line that no run wrote \(line 2"):
        Output(path)
    assert path.read_text().endswith("my notes\n")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path), pytest.raises(UsageError, match="another run is writing"):
        Output(path)
    Output(path).__exit__(None, None, None)


def test_an_unwritable_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be written: No such file or directory"):
        Output(tmp_path / "none" / "out.jsonl")


def test_row_set() -> None:
    rows = RowSet()
    for row in (0, 7, 8, 1_000_000):
        rows.add(row)
    assert [row for row in (0, 1, 7, 8, 9, 999_999, 1_000_000, 2_000_000) if row in rows] == [
        0,
        7,
        8,
        1_000_000,
    ]


def test_state_is_replaced_whole(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert load_state(output) is None
    state = RunState(input="sha256:0", batch="b", lane="standard")
    save_state(output, state)
    save_state(output, state)
    assert load_state(output) == state
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl.state"]
    state_path(output).write_text("{}")
    with pytest.raises(RunError, match="is not the state of a run"):
        load_state(output)


def test_answers_ignore_what_a_newer_version_adds(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"row": 0, "text": "a", "tool_calls": []}\n')
    assert list(read_answers(path)) == [Answer(row=0, text="a")]
