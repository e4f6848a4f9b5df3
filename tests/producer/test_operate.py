"""The verbs that operate a queue, as a person uses them; the test plays the consumer where one must fail."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from penstock import Client, Job
from tests.conftest import Server
from tests.penstock.support import KEYS, Worker
from tests.producer.conftest import Program, Result, until

Call = Callable[..., Result]


@pytest.fixture
def call(program: Program, redis_url: str) -> Call:
    """Run a verb on the test's server."""
    return lambda *arguments: program.call(*arguments, "--redis", redis_url)


def play(url: str, moves: Callable[[Client, Worker], Awaitable[Any]]) -> Any:
    """Let a test's client and its consumer do something."""

    async def run() -> Any:
        async with Client(url) as client, Redis.from_url(url, protocol=2) as redis:
            return await moves(client, Worker(redis))

    return asyncio.run(run())


def die(url: str, *jobs: Job, lane: str = "standard") -> list[str]:
    """Have jobs fail twice, the second time for good; gives the letters' ids."""

    async def moves(client: Client, worker: Worker) -> list[str]:
        for job in jobs:
            job_id = await client.submit(job, lane)
            assert await worker.claim(1, lane) == [job_id]
            assert await worker.fail(job_id, "no\nmemory", max_attempts=2, delay_ms=30_000) == b"retry"
            assert await worker.claim(1, lane) == []
            await worker.redis.xclaim(
                KEYS.jobs(lane), "penstock", "-", 0, [job_id.split(".")[1]], idle=60_000, justid=True
            )
            assert await worker.claim(1, lane) == [job_id]
            assert await worker.fail(job_id, "the engine died", max_attempts=2) == b"dead"
        return [letter.letter_id for letter in await client.dead_letters()]

    return play(url, moves)


def test_dead_letters_are_listed_and_shown(call: Call, redis_url: str) -> None:
    assert call("dead", "ls").out == "no dead letters\n"
    assert call("dead", "ls", "--json").out == ""
    job = Job(prompt="long " * 100, custom_id="mine", max_attempts=2)
    (first,) = die(redis_url, job)
    first, second = die(redis_url, Job(prompt="short"), lane="alice")

    listed = call("dead", "ls").out
    blocks = listed.split("\n\n")[0].splitlines()
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
    assert re.fullmatch(rf"{first}  {time}  standard  engine_error: the engine died", blocks[0])
    assert re.fullmatch(r"  job standard\.\d+-0\.[0-9a-f]{16}", blocks[1])
    assert re.fullmatch(rf"  attempt 1  {time}  on worker.1  engine_error: no memory", blocks[2])
    assert re.fullmatch(rf"  attempt 2  {time}  on worker.1  engine_error: the engine died", blocks[3])
    assert re.fullmatch(rf"{second}  {time}  alice  engine_error: the engine died", blocks[4])
    assert f"2 dead letters; penstock dead show --redis {redis_url} ID" in listed

    shown = call("dead", "show", first).out.splitlines()
    assert shown[0] == f"dead letter  {first}"
    assert any(line.startswith('prompt       "long long') and "… (502 characters)" in line for line in shown)
    assert 'custom_id    "mine"' in shown
    assert shown[-1].endswith("engine_error: the engine died")
    as_json = json.loads(call("dead", "show", second, "--json").out)
    assert as_json == [json.loads(line) for line in call("dead", "ls", "--json").out.splitlines()][1]
    assert (as_json["lane"], as_json["job"]) == ("alice", {"prompt": "short"})
    assert [attempt["error"]["message"] for attempt in as_json["attempts"]] == [
        "no\nmemory",
        "the engine died",
    ]
    assert as_json["attempts"][0]["retry_at_ms"] == as_json["attempts"][0]["at_ms"] + 30_000


def test_dead_letters_are_requeued_and_dropped(call: Call, redis_url: str, program: Program) -> None:
    ids = die(redis_url, *(Job(prompt=f"p{n}") for n in range(4)))
    done = call("dead", "requeue", ids[0])
    letter, words, job_id = done.out.split(" ", 1)[0], done.out.split(" as ")[0], done.out.split()[-1]
    assert (done.status, letter, words) == (0, ids[0], f"{ids[0]} requeued")
    again = call("dead", "requeue", ids[0], ids[1])
    assert again.status == 1
    assert again.err == f"penstock: there is no dead letter {ids[0]}\n"
    assert again.out.startswith(f"{ids[1]} requeued as standard.")
    assert call("dead", "drop", ids[2]).out == f"{ids[2]} dropped\n"
    assert call("dead", "drop", ids[2]).status == 1
    assert call("dead", "drop", "--all").out == f"{ids[3]} dropped\n"
    assert call("dead", "requeue", "--all").out == "no dead letters\n"
    gone = call("dead", "show", ids[3])
    assert (gone.status, gone.err) == (1, f"penstock: there is no dead letter {ids[3]}\n")
    program.stand_in(redis_url)
    until(lambda: call("status", job_id).out == "done: P0\n")


def test_all_letters_are_more_than_a_page(call: Call, redis_url: str) -> None:
    ids = die(redis_url, *(Job(prompt=f"p{n}") for n in range(60)))
    lines = call("dead", "requeue", "--all").out.splitlines()
    assert [line.split()[0] for line in lines] == ids
    assert call("dead", "ls").out == "no dead letters\n"


def test_a_lane_that_nobody_declared_is_there_with_its_first_job(
    call: Call, redis_url: str, program: Program
) -> None:
    """Tenants are lanes: nothing has to be set up for a new one."""
    program.stand_in(redis_url)
    answered = call("submit", "hello", "--lane", "tenant-42")
    assert (answered.status, answered.out) == (0, "HELLO\n")
    head, *rows = call("lanes").out.splitlines()
    assert head.split() == ["LANE", "WEIGHT", "QUEUED", "LEASED", "LIMIT", "TOKENS/JOB"]
    assert [row.split()[:5] for row in rows] == [
        ["standard", "1", "0", "0", "1,000,000"],
        ["tenant-42", "1", "0", "0", "1,000,000"],
    ]


def test_lanes_are_set_and_shown(call: Call) -> None:
    call("submit", "hello", "--no-wait")
    new = call("lanes", "set", "alice", "--weight", "2.5", "--max-jobs", "3")
    assert new.out == "lane alice: weight 2.5, limit 3 (a new lane)\n"
    whole = call("lanes", "set", "--whole-queue", "--max-jobs", "5000")
    assert whole.out == "the whole queue: limit 5,000 a lane, where it has none of its own\n"
    assert call("lanes").out.splitlines() == [
        "LANE      WEIGHT  QUEUED  LEASED  LIMIT  TOKENS/JOB",
        "alice        2.5       0       0      3           -",
        "standard       1       1       0  5,000           -",
    ]
    assert call("lanes", "set", "alice", "--max-jobs", "none").out == (
        "lane alice: weight 2.5, no limit of its own\n"
    )
    default = call("lanes", "set", "--whole-queue", "--max-jobs", "none").out
    assert "limit 1,000,000 a lane" in default
    call("pause", "--lane", "alice")
    alice, standard = json.loads(call("lanes", "--json").out)["lanes"]
    assert alice == {
        "lane": "alice",
        "weight": 2.5,
        "queued": 0,
        "leased": 0,
        "cost": None,
        "limit": 1_000_000,
        "max_jobs": None,
        "paused": True,
    }
    assert standard["queued"] == 1


def test_a_full_lane_refuses_in_one_line(call: Call) -> None:
    call("lanes", "set", "alice", "--max-jobs", "0")
    refused = call("submit", "hello", "--lane", "alice")
    assert refused.status == 1
    assert refused.err == (
        "penstock: the lane holds 0 jobs, its limit is 0; nothing was changed; try again in 1 s\n"
    )


def test_pause_and_resume(call: Call, redis_url: str, program: Program) -> None:
    paused = call("pause")
    assert paused.out == (
        "the whole queue: paused; what runs goes on, what is queued waits for "
        f"penstock resume --redis {redis_url}\n"
    )
    assert "The whole queue is paused; penstock resume" in call("lanes").out
    job_id = call("submit", "hello", "--no-wait").out.strip()
    assert call("pause", "--lane", "standard").out.startswith("lane standard: paused; ")
    program.stand_in(redis_url)
    queue = "queued, next in its lane (the queue is paused; `penstock resume` lets it go on)\n"
    assert call("status", job_id).out == queue
    assert call("resume").out == "the whole queue: resumed\n"
    lane = "queued, next in its lane (its lane is paused; `penstock resume --lane standard` lets it go on)\n"
    assert call("status", job_id).out == lane
    assert json.loads(call("status", job_id, "--json").out) == {
        "job_id": job_id,
        "state": "queued",
        "ahead": 0,
        "waits_for": "resume",
        "detail": "its lane is paused",
    }
    assert call("lanes").out.splitlines()[1].endswith("paused")
    assert call("resume", "--lane", "standard").out == "lane standard: resumed\n"
    until(lambda: call("status", job_id).out == "done: HELLO\n")
    assert json.loads(call("status", job_id, "--json").out)["event"]["type"] == "done"


def test_submit_says_that_the_queue_is_paused(call: Call) -> None:
    call("pause")
    result = call("submit", "hello", "--timeout", "2.5")
    assert result.err.splitlines()[0] == ("waiting: the queue is paused; `penstock resume` lets it go on")


def test_status_tells_the_states_apart(call: Call, server: Server, redis_url: str) -> None:
    job_id = call("submit", "hello", "--no-wait", "--max-attempts", "2").out.strip()
    behind = [call("submit", "hello", "--no-wait").out.strip() for _ in range(3)]

    async def loading(client: Client, worker: Worker) -> None:
        await worker.beat("loading weights")

    async def leased(client: Client, worker: Worker) -> None:
        await worker.beat()
        assert await worker.claim() == [job_id]

    async def failed(client: Client, worker: Worker) -> None:
        worker.deliveries[job_id] = 1
        assert await worker.fail(job_id, "no memory", delay_ms=25_000, max_attempts=2) == b"retry"

    play(redis_url, loading)
    assert call("status", job_id).out == (
        "queued, next in its lane (the consumer is not ready yet: loading weights)\n"
    )
    play(redis_url, leased)
    assert re.fullmatch(r"running on worker\.1, lease renewed \d\.\d s ago\n", call("status", job_id).out)
    assert call("status", behind[0]).out == "queued, next in its lane\n"
    assert re.fullmatch(r"queued, about [12] ahead in its lane\n", call("status", behind[2]).out)
    play(redis_url, failed)
    backoff = call("status", job_id)
    assert backoff.status == 0
    assert re.fullmatch(
        r"tried again in 2\d\.\d s: attempt 1 failed with engine_error: no memory\n", backoff.out
    )
    assert json.loads(call("status", job_id, "--json").out)["attempts"][0]["consumer"] == "worker.1"
    with server.client() as redis:
        redis.xack(KEYS.jobs("standard"), "penstock", job_id.split(".")[1])
        lost = call("status", job_id)
        assert lost.status == 1
        assert lost.out.startswith("lost: ")
        redis.xdel(KEYS.jobs("standard"), job_id.split(".")[1])
    expired = call("status", job_id)
    assert expired.status == 1
    assert expired.out.startswith("gone: ")
    never = call("status", "standard.99999999999999-0.0123456789abcdef", "--json")
    assert (never.status, json.loads(never.out)["state"]) == (1, "unknown")


def test_a_key_makes_a_submit_repeatable(call: Call) -> None:
    first = call("submit", "hello", "--no-wait", "--idempotency-key", "order-7")
    again = call("submit", "hello", "--no-wait", "--idempotency-key", "order-7")
    assert first.out == again.out
    bad = call("submit", "hello", "--idempotency-key", "two words")
    assert bad.status == 1
    assert "is not an idempotency key" in bad.err


def test_every_field_can_be_given(call: Call, server: Server, tmp_path: Any) -> None:
    (tmp_path / "params.json").write_text('{"logit_bias": {"42": -100}, "temperature": 0.5}')
    flags = ("--deadline", "30", "--max-attempts", "1", "--params", tmp_path / "params.json")
    fields = '{"custom_id": "a", "max_attempts": 9, "sampling_params": {"seed": 4, "temperature": 0.1}}'
    call("submit", "hi", "--raw", "--no-wait", "--temperature", "0.7", *flags, "--fields", fields)
    call("submit", "--no-wait", "--fields", '{"prompt_token_ids": [1, 2], "kind": "score"}')
    with server.client() as client:
        first, second = [json.loads(entry[b"job"]) for _, entry in client.xrange(KEYS.jobs("standard"))]
    assert first == {
        "prompt": "hi",
        "custom_id": "a",
        "deadline_s": 30.0,
        "max_attempts": 1,
        "sampling_params": {"seed": 4, "temperature": 0.7, "logit_bias": {"42": -100.0}},
    }
    assert second == {"prompt_token_ids": [1, 2], "kind": "score"}


def test_wrong_words_are_told_in_one_line(call: Call) -> None:
    for arguments, words in [
        (
            ("submit", "x", "--params", '{"temprature": 1}'),
            "`$.sampling_params`; did you mean `temperature`?",
        ),
        (("submit", "x", "--params", "[1]"), "--params: [1] can't be read: No such file"),
        (("submit", "x", "--fields", '{"custom_idd": "a"}'), "did you mean `custom_id`?"),
        (("submit", "x", "--fields", '{"sampling_params": 3}'), "Expected `object`, got `int`"),
        (("submit", "x", "--fields", '{"prompt": "y"}'), "`prompt` and `messages` are given"),
        (("submit", "x", "--deadline", "0"), "at `$.deadline_s`; its range:"),
        (("dead", "show", "standard.1-0"), "'standard.1-0' is not a dead letter's id; `penstock dead ls`"),
        (("dead", "requeue"), "name dead letters by their ids, or give --all"),
        (("dead", "drop", "1-0", "--all"), "name dead letters by their ids, or give --all"),
        (("lanes", "set"), "name one lane, or give --whole-queue"),
        (("lanes", "set", "alice", "--whole-queue"), "name one lane, or give --whole-queue"),
        (("lanes", "set", "alice"), "nothing to set; give --weight or --max-jobs"),
        (("lanes", "set", "--whole-queue", "--weight", "2"), "--weight is of a lane"),
        (("lanes", "set", "alice", "--weight", "-1"), "Expected `float` >= 0.01 - at `$.weight`"),
        (("lanes", "set", "alice", "--max-jobs", "many"), "it must be a number, 0 or more, or `none`"),
        (("lanes", "set", "A B", "--weight", "1"), "'A B' is not a lane name"),
        (("pause", "--lane", "*"), "'*' is not a lane name"),
    ]:
        result = call(*arguments)
        assert result.status == 1, (arguments, result)
        assert words in result.err, (arguments, result)
        assert len(result.err.splitlines()) == 1
        assert result.err.startswith("penstock: ")
