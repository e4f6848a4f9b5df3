"""`penstock run` as a process: embedded, killed, stopped, told no."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.producer.conftest import Program, read_lines, servers, until, write_rows


def prompts(count: int) -> list[Any]:
    return [{"prompt": f"row {number}", "custom_id": f"c{number}"} for number in range(count)]


def assert_whole(path: Path, count: int) -> None:
    lines = read_lines(path)
    assert sorted(line["row"] for line in lines) == list(range(count))
    assert all(line["text"] == f"ROW {line['row']}" for line in lines)
    assert all(line["custom_id"] == f"c{line['row']}" for line in lines)


def test_embedded_from_nothing(program: Program) -> None:
    rows = write_rows(program.folder / "in.jsonl", prompts(300))
    first = program.run("run", rows, "-o", "out.jsonl")
    assert first.status == 0, first
    assert "finished: 300 rows in out.jsonl" in first.err
    assert_whole(program.folder / "out.jsonl", 300)
    assert servers(program.data) == []
    again = program.run("run", rows, "-o", "out.jsonl")
    assert again.status == 0
    assert "was finished already: 300 rows" in again.err
    assert len(program.executed()) == 300


def test_bad_rows_cost_themselves(program: Program) -> None:
    rows: list[Any] = [
        {"prompt": "a", "expected": "A"},
        "{",
        "",
        {"prompt": "fail", "custom_id": "f", "expected": "x"},
        {"promt": "b", "custom_id": "g"},
        {"messages": [{"role": "user", "content": "c"}], "expected": "wrong"},
    ]
    done = program.run("run", write_rows(program.folder / "in.jsonl", rows), "-o", "out.jsonl")
    assert done.status == 3, done
    assert "5 rows" in done.err
    assert "1 of 3 as expected" in done.err
    assert "3 ended in an error" in done.err
    lines = {line["row"]: line for line in read_lines(program.folder / "out.jsonl")}
    assert {row: line.get("text") for row, line in lines.items()} == {
        0: "A",
        1: None,
        3: None,
        4: None,
        5: "C",
    }
    assert lines[0]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}
    assert [lines[row].get("correct") for row in (0, 3, 5)] == [True, False, False]
    assert lines[1]["error"]["message"].startswith("line 2: ")
    assert lines[3]["error"] == {"type": "engine_error", "message": "as asked", "retryable": False}
    assert lines[4]["custom_id"] == "g"
    assert "did you mean `prompt`" in lines[4]["error"]["message"]
    assert sorted(program.executed()) == ["a", "c", "fail"]


def test_killed_again_and_again_neither_skips_nor_repeats(
    program: Program, make_server: Callable[..., Server]
) -> None:
    server = make_server()
    rows = write_rows(program.folder / "in.jsonl", prompts(1200))
    out = program.folder / "out.jsonl"
    program.stand_in(server.url, delay_s=0.0005)
    command = ("run", rows, "-o", out, "--redis", server.url, "--window", 128)
    for answers in (1, 250, 700):
        running = program.start(*command)
        until(lambda answers=answers: out.exists() and out.read_bytes().count(b"\n") >= answers)
        running.kill()
        running.wait()
    done = program.run(*command)
    assert done.status == 0, done
    assert_whole(out, 1200)
    assert len(program.executed()) == 1200
    with server.client() as client:
        left = [key for key in client.keys("*") if b":batch:" in key or b":result:" in key]
        assert left == []


def test_killed_on_the_embedded_server(program: Program) -> None:
    rows = write_rows(program.folder / "in.jsonl", prompts(400))
    out = program.folder / "out.jsonl"
    running = program.start("run", rows, "-o", out, env={"STAND_IN_DELAY_S": "0.005"})
    until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 50)
    running.kill()
    running.wait()
    assert len(servers(program.data)) == 1
    done = program.run("run", rows, "-o", out)
    assert done.status == 0, done
    assert_whole(out, 400)
    assert servers(program.data) == []


def test_ctrl_c_says_how_to_go_on(program: Program) -> None:
    rows = write_rows(program.folder / "in.jsonl", prompts(400))
    out = program.folder / "out.jsonl"
    running = program.start("run", rows, "-o", "out.jsonl", env={"STAND_IN_DELAY_S": "0.005"})
    until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 20)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130, err
    assert "The same command goes on from here." in err
    assert "Traceback" not in err
    assert servers(program.data) == []
    assert 20 <= len(read_lines(out)) < 400
    assert program.run("run", rows, "-o", "out.jsonl").status == 0
    assert_whole(out, 400)


def test_no_consumer_is_said_once(program: Program, redis_url: str) -> None:
    rows = write_rows(program.folder / "in.jsonl", prompts(3))
    running = program.start("run", rows, "-o", "out.jsonl", "--redis", redis_url)
    assert running.stderr is not None
    line = running.stderr.readline()
    while "waiting" not in line:
        line = running.stderr.readline()
    assert "no consumer is alive on this server; start one with `penstock up`" in line
    program.stand_in(redis_url)
    _, err = running.communicate(timeout=20)
    assert "waiting" not in err
    assert running.returncode == 0


def test_uses_the_consumer_that_runs(program: Program) -> None:
    serving = program.start("up")
    assert serving.stderr is not None
    while "ready" not in serving.stderr.readline():
        pass
    rows = write_rows(program.folder / "in.jsonl", prompts(20))
    assert program.run("run", rows, "-o", "out.jsonl").status == 0
    assert not (program.data / "consumer.log").exists()
    assert len(servers(program.data)) == 1
    serving.send_signal(signal.SIGTERM)
    serving.communicate(timeout=20)
    assert serving.returncode == 0
    assert servers(program.data) == []


@pytest.mark.parametrize("what", ["input", "lane", "state"])
def test_an_output_of_something_else_is_refused(program: Program, redis_url: str, what: str) -> None:
    rows = write_rows(program.folder / "in.jsonl", prompts(30))
    out = program.folder / "out.jsonl"
    stand_in = program.stand_in(redis_url, delay_s=0.05)
    running = program.start("run", rows, "-o", out, "--redis", redis_url)
    until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 1)
    running.kill()
    running.wait()
    stand_in.kill()
    before, more = out.read_bytes(), ()
    if what == "input":
        write_rows(rows, prompts(31))
    elif what == "lane":
        more = ("--lane", "other")
    else:
        (program.folder / "out.jsonl.state").unlink()
    refused = program.run("run", rows, "-o", out, "--redis", redis_url, *more)
    assert refused.status == 1
    words = {
        "input": "is not what it was when",
        "lane": "was begun on lane 'standard'",
        "state": "which says whose",
    }
    assert words[what] in refused.err
    assert "Traceback" not in refused.err
    assert out.read_bytes() == before


def test_usage_errors_are_one_line(program: Program) -> None:
    rows = write_rows(program.folder / "in.jsonl", prompts(1))
    out = program.folder / "out.jsonl"
    for arguments, words in [
        (("run", "none.jsonl", "-o", out), "none.jsonl can't be read"),
        (("run", rows, "-o", rows), "is the input; name another output"),
        (("run", rows, "-o", "no/folder/out"), "can't be written"),
        (("run", rows, "-o", out, "--window", "0"), "--window is 0; it must be 1 or more"),
        (("run", rows, "-o", out, "--redis", "localhost"), "'localhost' is not a server's URL"),
        (("run", rows, "-o", out, "--redis", "redis://127.0.0.1:1"), "nothing was sent"),
        (("run", rows, "-o", out, "--model", "./none"), "is not a model's folder"),
    ]:
        result = program.call(*arguments)
        assert result.status == 1, result
        assert words in result.err
        assert len(result.err.splitlines()) == 1, result.err
        assert sorted(path.name for path in program.folder.glob("*.jsonl*")) == ["in.jsonl"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_an_input_that_is_no_file_is_refused_unopened(program: Program, kind: str) -> None:
    path = program.folder / "in"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/null")
    refused = program.run("run", path, "-o", "out.jsonl")
    assert refused.status == 1, refused
    assert "is not a regular file" in refused.err
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_an_output_that_is_no_file_is_refused(program: Program, device: str) -> None:
    rows = write_rows(program.folder / "in.jsonl", prompts(1))
    refused = program.call("run", rows, "-o", device)
    assert refused.status == 1, refused
    assert "is not a file" in refused.err
    assert len(refused.err.splitlines()) == 1


def test_rows_removed_from_a_finished_output_are_asked_again(program: Program) -> None:
    rows = write_rows(program.folder / "in.jsonl", [*prompts(5), ""])
    out = program.folder / "out.jsonl"
    assert program.run("run", rows, "-o", out).status == 0
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:2]))
    again = program.run("run", rows, "-o", out)
    assert again.status == 0, again
    assert "lacks 3 rows" in again.err
    assert_whole(out, 5)
    out.unlink()
    assert "lacks 5 rows" in program.run("run", rows, "-o", out).err
    assert_whole(out, 5)
    assert "was finished already: 5 rows" in program.run("run", rows, "-o", out).err


def test_a_consumer_of_another_model_is_refused(program: Program, redis_url: str) -> None:
    program.stand_in(redis_url)
    where = ("--redis", redis_url)
    rows = write_rows(program.folder / "in.jsonl", prompts(1))
    assert program.run("submit", "up", *where).status == 0
    refused = program.run("run", rows, "-o", "out.jsonl", *where, "--model", "other")
    assert refused.status == 1, refused
    assert "--model is other, and consumer stand-in." in refused.err
    assert not (program.folder / "out.jsonl").exists()
    assert program.run("run", rows, "-o", "out.jsonl", *where).status == 0
