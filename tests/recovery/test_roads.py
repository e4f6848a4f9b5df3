"""One job by every road (both clients, a raw XADD, two verbs of the command line) gives one result record."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from penstock import Client, Job, SyncClient
from penstock.keys import Keys
from penstock.messages import TerminalEvent, decode_job, decode_terminal, encode_event
from producer.answers import answer_of
from producer.shipped import default_model
from tests.conftest import Server
from tests.recovery.processes import ConsumerProcess

KEYS = Keys()
LANE = "roads"  # that nobody declares
TIMEOUT_S = 90

GREEDY = {"max_tokens": 12, "temperature": 0.0}
CHAT = [{"role": "user", "content": "What is 12 + 30?"}]
FORM = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}

# What a raw sender writes, and what a person types for the same job.
JOBS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "text": (
        {"prompt": "What is 12 + 30?", "sampling_params": GREEDY},
        ["What is 12 + 30?", "--raw", "--max-tokens", "12", "--temperature", "0"],
    ),
    "messages": (
        {"messages": CHAT, "sampling_params": GREEDY},
        ["What is 12 + 30?", "--params", json.dumps(GREEDY)],
    ),
    "a form": (
        {
            "messages": CHAT,
            "sampling_params": {"structured_outputs": {"json": FORM}, "max_tokens": 60, "seed": 3},
        },
        ["What is 12 + 30?", "--json-schema", json.dumps(FORM), "--max-tokens", "60", "--seed", "3"],
    ),
    "logprobs": (
        {"prompt": "Reverse water:", "sampling_params": {**GREEDY, "logprobs": 2, "prompt_logprobs": 1}},
        ["Reverse water:", "--raw", "--params", json.dumps({**GREEDY, "prompt_logprobs": 1}), "--logprobs=2"],
    ),
    "two samples": (
        {
            "prompt": "Write 3 words about water:",
            "custom_id": "mine",
            "return_token_ids": True,
            "sampling_params": {"n": 2, "seed": 7, "temperature": 1.0, "max_tokens": 20, "ignore_eos": True},
        },
        [
            *("Write 3 words about water:", "--params", '{"ignore_eos": true}'),
            *("--fields", '{"custom_id": "mine", "return_token_ids": true}'),
            *["--raw", "--n", "2", "--seed", "7", "--temperature", "1", "--max-tokens", "20"],
        ],
    ),
    "a stream": (
        {"prompt": "What is 12 + 30?", "stream": True, "sampling_params": GREEDY},
        ["What is 12 + 30?", "--raw", "--stream", "--max-tokens", "12", "--temperature", "0"],
    ),
    "a score": ({"prompt": "12 + 30 = 42", "kind": "score"}, ["12 + 30 = 42", "--raw", "--kind", "score"]),
    "a failure": (
        {"prompt": "Hello", "model": "another", "custom_id": "mine"},
        ["Hello", "--raw", "--fields", '{"model": "another", "custom_id": "mine"}'],
    ),
}

RAW = [job for job, _ in JOBS.values()]


@pytest.fixture
def consumer(redis_url: str) -> Iterator[ConsumerProcess]:
    process = ConsumerProcess("-m", "consumer", "--redis", redis_url, "--model", str(default_model()))
    yield process
    process.clean_up()


def record(event: TerminalEvent) -> dict[str, Any]:
    """A terminal event as JSON, without what depends on which job came first: the prefix cache's share."""
    fields = json.loads(encode_event(event))
    fields.get("usage", {}).pop("cached_tokens", None)
    return fields


def jobs() -> list[Job]:
    return [decode_job(json.dumps(job)) for job in RAW]


async def by_client(url: str) -> tuple[list[TerminalEvent], list[TerminalEvent]]:
    """Ends of the jobs, and of the same as rows of a batch."""
    async with Client(url) as client:
        ids = await client.submit_many(jobs(), LANE)
        ends = [[event async for _, event in client.stream(job_id)][-1] for job_id in ids]
        batch = await client.create_batch()
        await batch.submit_many([msgspec.structs.replace(job, row=n) for n, job in enumerate(jobs())], LANE)
        rows: dict[int | None, TerminalEvent] = {}
        async for row in batch.done():
            rows[row.row] = row.event
            if len(rows) == len(RAW):
                break
    return ends, [rows[n] for n in range(len(RAW))]  # type: ignore[return-value]


def by_sync_client(url: str) -> list[TerminalEvent]:
    with SyncClient(url) as client:
        ids = [client.submit(job, LANE) for job in jobs()]
        return [list(client.stream(job_id))[-1][1] for job_id in ids]  # type: ignore[misc]


def by_xadd(redis: Redis) -> list[TerminalEvent]:
    entries = [redis.xadd(KEYS.jobs(LANE), {"job": json.dumps(job)}) for job in RAW]
    return [_end(redis, f"{LANE}.{entry.decode()}") for entry in entries]  # type: ignore[union-attr]


def _end(redis: Redis, job_id: str) -> TerminalEvent:
    """As docs/wire.md has it: read on until an id that ends in -1."""
    after = "0-0"
    while True:
        reply: Any = redis.xread({KEYS.result(job_id): after}, block=TIMEOUT_S * 1000)
        assert reply, f"no end of {job_id}"
        for entry_id, fields in reply[0][1]:
            after = entry_id.decode()
            if after.endswith("-1"):
                return decode_terminal(fields[b"event"])


def by_submit(url: str) -> list[TerminalEvent]:
    running = [_cli("submit", *typed, "--json", "--lane", LANE, "--redis", url) for _, typed in JOBS.values()]
    ends: list[TerminalEvent] = []
    for process in running:
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert out, err
        ends.append(decode_terminal(out.splitlines()[-1]))
    return ends


def by_run(url: str, folder: Path) -> list[dict[str, Any]]:
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(job)}\n" for job in RAW))
    process = _cli(
        *("run", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--lane", LANE, "--redis", url)
    )
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3, err  # finished, and one row is a failure
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    return sorted((_line(line) for line in lines), key=lambda line: line["row"])


def _line(fields: dict[str, Any]) -> dict[str, Any]:
    fields.get("usage", {}).pop("cached_tokens", None)
    return fields


def _cli(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "producer.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(180)
def test_a_job_has_one_result_by_every_road(
    server: Server, redis_url: str, consumer: ConsumerProcess, tmp_path: Path
) -> None:
    ends, rows = asyncio.run(by_client(redis_url))
    expected = dict(zip(JOBS, map(record, ends), strict=True))
    assert expected["a failure"]["error"]["type"] == "model_not_served"
    assert [len(end.get("outputs", [])) for end in expected.values()] == [1, 1, 1, 1, 2, 1, 0, 0]
    assert set(json.loads(expected["a form"]["outputs"][0]["text"])) == {"a", "b"}

    with server.client() as redis:
        roads = {
            "a row of a batch": rows,
            "SyncClient": by_sync_client(redis_url),
            "XADD": by_xadd(redis),
            "penstock submit": by_submit(redis_url),
        }
    for road, found in roads.items():
        assert dict(zip(JOBS, map(record, found), strict=True)) == expected, road

    answers = [_line(msgspec.to_builtins(answer_of(n, end, None))) for n, end in enumerate(ends)]
    assert by_run(redis_url, tmp_path) == answers
