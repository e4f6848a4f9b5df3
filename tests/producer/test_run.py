"""The driver of a dataset run against a server that forgets, dies and fills up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.batch import Batch
from penstock.client import Client
from penstock.keys import Keys
from producer import driver
from producer.answers import Output, RunState, Tally, load_state
from producer.rows import survey
from producer.run import Plan, Run
from tests.conftest import Server
from tests.producer.conftest import Program, eventually, read_lines, write_rows

KEYS = Keys()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "IDLE_S", 0.15)


class Words:
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, words: str) -> None:
        self.said.append(words)

    def wait(self, why: str | None) -> None:
        self.said.append(why or "")

    def update(self, tally: Tally, total: int) -> None:
        pass

    def __enter__(self) -> Words:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Case:
    """One input and output, run by as many `Run`s as a test wants, one after the other."""

    def __init__(self, folder: Path, url: str, rows: int, window: int = 32) -> None:
        self.plan = Plan(folder / "in.jsonl", folder / "out.jsonl", window, "standard")
        self.rows, self.url, self.words = rows, url, Words()
        write_rows(self.plan.input, [{"prompt": f"row {number}"} for number in range(rows)])

    async def finish(self) -> None:
        found = survey(self.plan.input)
        with Output(self.plan.output) as output:
            state = load_state(self.plan.output) or RunState(
                input=found.fingerprint, batch="", lane=self.plan.lane
            )
            await Run(self.plan, self.url, output, state, found.lines, self.words).finish()

    async def stopped_after(self, answers: int) -> None:
        running = asyncio.create_task(self.finish())
        await eventually(lambda: self.written() >= answers)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def written(self) -> int:
        return self.plan.output.read_bytes().count(b"\n") if self.plan.output.exists() else 0

    def assert_whole(self) -> None:
        lines = read_lines(self.plan.output)
        assert sorted(line["row"] for line in lines) == list(range(self.rows))
        assert all(line["text"] == f"ROW {line['row']}" for line in lines)
        state = load_state(self.plan.output)
        assert state is not None
        assert state.finished


async def test_the_window_bounds_what_is_in_flight(program: Program, server: Server, redis_url: str) -> None:
    case = Case(program.folder, redis_url, 500, window=40)
    running = asyncio.create_task(case.finish())
    with server.client() as client:
        await eventually(lambda: client.xlen(KEYS.jobs("standard")) == 40)
        await asyncio.sleep(0.3)
        assert client.xlen(KEYS.jobs("standard")) == 40
        program.stand_in(redis_url)
        await running
        assert client.xlen(KEYS.jobs("standard")) == 0
    case.assert_whole()
    assert any("no consumer is alive" in words for words in case.words.said)


async def test_an_empty_input_is_a_finished_run(program: Program, redis_url: str) -> None:
    case = Case(program.folder, redis_url, 0)
    await case.finish()
    case.assert_whole()


async def test_a_torn_last_line_is_written_again_from_the_done_stream(
    program: Program, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(program.folder, redis_url, 120)
    program.stand_in(redis_url, delay_s=0.002)

    async def dies_before(self: Batch, upto: str) -> int:
        raise OSError("the machine died here")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "trim", dies_before)
        with pytest.raises(OSError, match="died here"):
            await case.finish()
    whole = case.written()
    assert whole > 2
    os.truncate(case.plan.output, case.plan.output.stat().st_size - 20)
    await case.finish()
    case.assert_whole()
    assert len(program.executed()) == 120


async def test_a_lost_done_stream_is_noticed_and_its_rows_asked_again(
    program: Program, server: Server, redis_url: str
) -> None:
    case = Case(program.folder, redis_url, 200)
    consumer = program.stand_in(redis_url, delay_s=0.002)
    await case.stopped_after(20)
    await eventually(lambda: len(program.executed()) >= case.written() + 5)
    state = load_state(case.plan.output)
    assert state is not None
    with server.client() as client:
        assert client.delete(KEYS.batch_done(state.batch)) == 1
    await case.finish()
    case.assert_whole()
    assert any("the server lost rows" in words for words in case.words.said)
    assert consumer.poll() is None
    assert 200 < len(program.executed()) <= 200 + 2 * case.plan.window


@pytest.mark.parametrize("when", ["running", "stopped"])
async def test_a_flushed_server_is_asked_only_what_is_not_answered(
    program: Program, server: Server, redis_url: str, when: str
) -> None:
    case = Case(program.folder, redis_url, 300)
    program.stand_in(redis_url, delay_s=0.002)
    if when == "stopped":
        await case.stopped_after(40)
        _flush(server)
        await case.finish()
    else:
        running = asyncio.create_task(case.finish())
        await eventually(lambda: case.written() >= 40)
        _flush(server)
        await running
    case.assert_whole()
    assert len(program.executed()) < 300 + 3 * case.plan.window


def _flush(server: Server) -> None:
    with server.client() as client:
        client.flushall()


async def test_the_lane_deleted_by_hand_does_not_hang_the_run(
    program: Program, server: Server, redis_url: str
) -> None:
    case = Case(program.folder, redis_url, 30)
    running = asyncio.create_task(case.finish())
    with server.client() as client:
        await eventually(lambda: client.xlen(KEYS.jobs("standard")) == 30)
        client.delete(KEYS.jobs("standard"))
    program.stand_in(redis_url)
    await running
    case.assert_whole()


async def test_a_server_killed_in_mid_run(program: Program, make_server: Callable[..., Server]) -> None:
    server = make_server("--appendfsync", "everysec", aof=True)
    case = Case(program.folder, server.url, 600, window=64)
    program.stand_in(server.url, delay_s=0.002)
    running = asyncio.create_task(case.finish())
    for answers in (60, 250):
        await eventually(lambda answers=answers: case.written() >= answers)
        server.kill()
        server.start()
    await running
    case.assert_whole()
    # What the last second before a kill held may run twice, and is written once.
    assert len(program.executed()) <= 600 + 2 * 3 * 64


async def test_a_cursor_that_went_back_is_followed(
    program: Program, server: Server, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the server may undo its last second: the enqueues that moved the cursor, and the move."""
    case = Case(program.folder, redis_url, 100, window=20)
    running = asyncio.create_task(case.finish())
    with server.client() as client:
        await eventually(lambda: client.xlen(KEYS.jobs("standard")) == 20)
        state = load_state(case.plan.output)
        assert state is not None
        client.delete(KEYS.jobs("standard"))
        client.hset(KEYS.batch(state.batch), mapping={"cursor": "0", "total": 0})
        program.stand_in(redis_url)
        await running
    case.assert_whole()
    assert len(program.executed()) == 100
    assert any("has moved" in words for words in case.words.said)


async def test_a_full_server_is_waited_for(program: Program, make_server: Callable[..., Server]) -> None:
    server = make_server()
    case = Case(program.folder, server.url, 100, window=100)
    rows = [{"prompt": f"row {n}", "chat_template_kwargs": {"x": "y" * 60_000}} for n in range(100)]
    write_rows(case.plan.input, rows)
    with server.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used + 4_000_000)
        running = asyncio.create_task(case.finish())
        await eventually(
            lambda: any("memory is full" in words for words in case.words.said) or running.done()
        )
        assert not running.done(), await running
        assert 0 < client.xlen(KEYS.jobs("standard")) < 100
        client.config_set("maxmemory", 0)
    program.stand_in(server.url)
    await running
    case.assert_whole()


async def test_a_full_lane_takes_what_it_has_room_for(
    program: Program, server: Server, redis_url: str
) -> None:
    """Its limit is below the run's chunks, which are cut until they fit; bad rows are passed over."""
    async with Client(redis_url) as client:
        await client.set_lane("standard", max_jobs=3)
    case = Case(program.folder, redis_url, 100, window=100)
    rows: list[Any] = [{"prompt": f"row {n}"} if n % 7 else {"promt": "a bad row"} for n in range(100)]
    write_rows(case.plan.input, rows)
    running = asyncio.create_task(case.finish())
    with server.client() as client:
        full = "sending on as there is room: the lane holds 3 jobs, its limit is 3"
        await eventually(lambda: any(full in words for words in case.words.said) or running.done())
        assert client.xlen(KEYS.jobs("standard")) == 3
    program.stand_in(redis_url)
    await running
    lines = read_lines(case.plan.output)
    assert sorted(line["row"] for line in lines) == list(range(100))
    assert all(line.get("text") == (f"ROW {line['row']}" if line["row"] % 7 else None) for line in lines)
    assert sorted(program.executed()) == sorted(f"row {n}" for n in range(100) if n % 7)


async def test_rows_of_the_run_itself_only(program: Program, server: Server, redis_url: str) -> None:
    """Another's entry in the done stream (a row unknown, or none) is passed over."""
    case = Case(program.folder, redis_url, 20)
    running = asyncio.create_task(case.finish())
    event: Any = (
        b'{"type":"done","outputs":[{"text":"x","finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":1,"completion_tokens":1},"model":"m"}'
    )
    with server.client() as client:
        await eventually(lambda: client.xlen(KEYS.jobs("standard")) == 20)
        state = load_state(case.plan.output)
        assert state is not None
        for row in ("", "999"):
            client.xadd(KEYS.batch_done(state.batch), {"job_id": "standard.1-0", "row": row, "event": event})
    program.stand_in(redis_url)
    await running
    case.assert_whole()
