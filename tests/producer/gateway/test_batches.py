"""/v1/batches by OpenAI's own client: made, validated, run, listed, cancelled, retried."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from penstock.keys import Keys
from producer.gateway.batches import life
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.producer.conftest import eventually
from tests.producer.gateway.batching import (
    CHAT,
    answers_of,
    ended,
    has_model,
    has_output,
    input_of,
    lines_of,
    make_batch,
    reached,
    request_line,
    with_bad_lines,
)
from tests.producer.gateway.openai.test_examples import CLIENTS, said
from tests.producer.gateway.running import serving, serving_in_thread
from tests.producer.gateway.tenants import add_key
from tests.producer.gateway.test_webhooks import event_of, receiving

KEYS = Keys()


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client of the gateway."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.usefixtures("consumer")
async def test_a_batch_from_upload_to_answers(client: AsyncOpenAI, server: Server) -> None:
    data = input_of([request_line(f"c{n}", f"prompt {n}") for n in range(30)])
    batch = await make_batch(client, data, metadata={"project": "x"})
    assert batch.status == "validating"
    done = await ended(client, batch.id)
    assert done.status == "completed", done
    replies, failed = await answers_of(client, done)
    assert failed == {}
    assert sorted(replies) == sorted(f"c{n}" for n in range(30))
    assert {reply["object"] for reply in replies.values()} == {"chat.completion"}
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
    assert done.usage is not None
    assert done.usage.output_tokens == 60
    assert done.usage.total_tokens == done.usage.input_tokens + 60
    assert (done.model, done.metadata, done.error_file_id) == ("scripted", {"project": "x"}, None)
    assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at, done.expires_at)
    with server.client() as redis:
        assert [key for key in redis.keys("*") if b":batch:" in key or b":result:" in key] == []


@pytest.mark.usefixtures("consumer")
@pytest.mark.parametrize(
    ("url_of_endpoint", "given"),
    [("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})],
)
async def test_the_other_endpoints(client: AsyncOpenAI, url_of_endpoint: str, given: dict[str, str]) -> None:
    body = {"model": "scripted", **given}
    line = {"custom_id": "a", "method": "POST", "url": url_of_endpoint, "body": body}
    batch = await make_batch(client, input_of([line]), endpoint=url_of_endpoint)
    done = await ended(client, batch.id)
    replies, failed = await answers_of(client, done)
    assert failed == {}
    assert replies["a"]["object"] in ("text_completion", "list")


async def test_a_bad_line_in_a_hundred_costs_that_line(client: AsyncOpenAI, consumer: None) -> None:
    """Three thousand lines, thirty bad ones of ten kinds, blank lines and a BOM."""
    lines, wrong = with_bad_lines(3000)
    lines[7:7] = ["", "  "]  # the lines behind them have moved by two
    wrong = {number + 2: told for number, told in wrong.items()}
    await has_model(client)
    batch = await make_batch(client, b"\xef\xbb\xbf" + input_of(lines))
    done = await ended(client, batch.id, 100)
    assert done.status == "completed", done
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 3000, "completed": 2970, "failed": 30}
    replies, failed = await answers_of(client, done)
    good = [line for n, line in enumerate(lines) if line and not isinstance(line, str) and n not in wrong]
    expected = {line["custom_id"] for line in good}
    assert replies.keys() == expected
    assert len(expected) == 2970
    told = {row: (line["error"]["code"], line["error"].get("param")) for row, line in failed.items()}
    assert told == wrong
    assert {row: line["error"]["line"] for row, line in failed.items()} == {row: row + 1 for row in wrong}
    assert all(line["response"] is None for line in failed.values())
    torn = min(failed)
    assert failed[torn]["error"]["message"] == "This line is not parseable as valid JSON."
    assert failed[torn]["custom_id"] is None


async def test_a_strict_batch_fails_for_one_bad_line(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    data = input_of([request_line("a"), {"custom_id": "b"}, request_line("a")])
    by_field = await make_batch(client, data, extra_body={"strict": True})
    by_header = await make_batch(client, data, extra_headers={"X-Strict-Batch": "true"})
    for batch in (by_field, by_header):
        done = await ended(client, batch.id)
        assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
        assert done.failed_at is not None
        assert done.errors is not None
        assert done.errors.data is not None
        assert [(one.code, one.line, one.param) for one in done.errors.data] == [
            ("missing_required_parameter", 2, "method"),
            ("duplicate_custom_id", 3, "custom_id"),
        ]
        refused = await http.post(f"/v1/batches/{batch.id}/retry")
        assert refused.status_code == 409


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        (b"", ["empty_file"]),
        (b"\n \n", ["empty_file"]),
        (b"\xef\xbb\xbf", ["empty_file"]),
        (b"{\n[]\n", ["invalid_json_line"] * 2),
    ],
)
async def test_a_batch_with_nothing_to_run_fails(client: AsyncOpenAI, data: bytes, codes: list[str]) -> None:
    done = await ended(client, (await make_batch(client, data)).id)
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert [one.code for one in done.errors.data] == codes
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'failed'"):
        await client.batches.cancel(done.id)


async def test_a_missing_input_is_told_by_the_batch(client: AsyncOpenAI) -> None:
    batch = await client.batches.create(input_file_id="file-nowhere", endpoint=CHAT, completion_window="24h")
    done = await ended(client, batch.id)
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert [(one.code, one.param, one.line) for one in done.errors.data] == [
        ("invalid_request", "file_id", None)
    ]


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({"endpoint": "/v1/images"}, "endpoint", "invalid_value"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "object_above_max_properties"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k", "string_above_max_length"),
        ({"completion_window": "soon"}, "completion_window", "invalid_value"),
        ({"completion_window": "31d"}, "completion_window", "invalid_value"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
            "output_expires_after.seconds",
            "invalid_value",
        ),
    ],
)
async def test_what_a_batch_can_not_be(
    client: AsyncOpenAI, wrong: dict[str, Any], param: str, code: str
) -> None:
    given = {"endpoint": CHAT, "completion_window": "24h", **wrong}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.create(input_file_id="file-x", **given)
    assert (refused.value.param, refused.value.code) == (param, code)


async def test_batches_are_listed_newest_first_by_pages(client: AsyncOpenAI) -> None:
    made = [(await make_batch(client, b"", completion_window="7d")).id for _ in range(5)]
    page = await client.batches.list(limit=2)
    assert [one.id for one in page.data] == made[:-3:-1]
    assert page.has_more
    assert [one.id async for one in client.batches.list(limit=2)] == made[::-1]
    with pytest.raises(openai.BadRequestError, match="there is no batch 'batch_x'"):
        await client.batches.list(after="batch_x")
    with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch_none'"):
        await client.batches.retrieve("batch_none")
    with pytest.raises(openai.NotFoundError, match="No batch found"):
        await client.batches.cancel("batch_none")


def test_the_synchronous_client(url_in_thread: str) -> None:
    """Its own thread's calls, while the gateway runs in another's loop."""
    with OpenAI(base_url=f"{url_in_thread}/v1", api_key="none", max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", input_of([request_line("a")])), purpose="batch")
        assert client.files.wait_for_processing(file.id, poll_interval=0.01).status == "processed"
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert client.files.content(file.id).read() == input_of([request_line("a")])
        assert client.files.delete(file.id).deleted


@pytest.fixture
def url_in_thread(redis_url: str, tmp_path: Path) -> Any:
    with serving_in_thread(redis_url, tmp_path / "gateway") as url:
        yield url


# Ends before the end


async def test_a_cancelled_batch_keeps_its_answers_and_names_the_rest(
    client: AsyncOpenAI, redis_url: str, tmp_path: Path, server: Server
) -> None:
    slow = save_model(tmp_path / "scripted", {"step_s": 0.05})
    data = input_of([request_line(f"c{n}") for n in range(3000)])
    async with consuming(redis_url, slow, max_num_seqs=16):
        batch = await make_batch(client, data)
        seen = await has_output(client, batch.id)
        assert seen.status == "in_progress"
        assert seen.request_counts is not None
        assert seen.request_counts.completed > 0, "counts move"
        cancelling = await client.batches.cancel(batch.id)
        assert cancelling.status == "cancelling"
        assert cancelling.cancelling_at is not None
        done = await ended(client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    replies, failed = await answers_of(client, done)
    assert 0 < len(replies) < 3000
    assert {line["error"]["code"] for line in failed.values()} == {"batch_cancelled"}
    assert replies.keys() | {line["custom_id"] for line in failed.values()} == {f"c{n}" for n in range(3000)}
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {
        "total": 3000,
        "completed": len(replies),
        "failed": len(failed),
    }
    assert (await client.batches.cancel(batch.id)).status == "cancelled", "again is allowed"
    with server.client() as redis:
        assert redis.xlen(KEYS.jobs("standard")) == 0, "rows in the queue were cancelled"


@pytest.mark.usefixtures("consumer")
async def test_a_completed_batch_can_not_be_cancelled(client: AsyncOpenAI) -> None:
    done = await ended(client, (await make_batch(client, input_of([request_line("a")]))).id)
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        await client.batches.cancel(done.id)


async def test_a_batch_whose_window_is_over_expires(
    client: AsyncOpenAI, redis_url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No consumer answers its last rows; the clock is put forward."""
    batch = await make_batch(
        client, input_of([request_line(f"c{n}") for n in range(5)]), completion_window="90m"
    )
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at == 90 * 60
    await reached(client, batch.id, ("in_progress",))
    later = life.now() + 91 * 60
    monkeypatch.setattr(life, "now", lambda: later)
    done = await ended(client, batch.id)
    assert (done.status, done.expired_at) == ("expired", later)
    replies, failed = await answers_of(client, done)
    assert replies == {}
    assert {line["error"]["code"] for line in failed.values()} == {"batch_expired"}
    assert [line["custom_id"] for _, line in sorted(failed.items())] == [f"c{n}" for n in range(5)]


async def test_failed_rows_are_retried_in_a_batch_of_their_own(
    client: AsyncOpenAI, http: httpx.AsyncClient, redis_url: str, tmp_path: Path
) -> None:
    small = save_model(tmp_path / "scripted", {"max_model_len": 64})
    lines: list[Any] = [request_line(f"c{n}") for n in range(6)]
    lines[2] = request_line("c2", "x" * 200)
    lines[4] = {"custom_id": "bad"}
    async with consuming(redis_url, small):
        first = await make_batch(client, input_of(lines), metadata={"a": "b"})
        early = await http.post(f"/v1/batches/{first.id}/retry")
        assert early.status_code == 409 or (await ended(client, first.id)).status == "completed"
        done = await ended(client, first.id)
        _, failed = await answers_of(client, done)
        assert sorted(failed) == [2, 4]
        assert failed[2]["error"] is None
        assert failed[2]["response"]["status_code"] == 400
        assert failed[2]["response"]["body"]["error"]["type"] == "invalid_request_error"
        again = (await http.post(f"/v1/batches/{done.id}/retry")).json()
        assert again["retry_of"] == done.id
        assert again["metadata"] == {"a": "b", "retry_of": done.id}
        content = await client.files.content(again["input_file_id"])
        assert [json.loads(line) for line in content.text.splitlines()] == [lines[2], lines[4]]
        second = await ended(client, again["id"])
        assert second.request_counts is not None
        assert second.request_counts.model_dump() == {"total": 2, "completed": 0, "failed": 2}


# Partial output


async def test_output_can_be_read_while_it_is_written(
    client: AsyncOpenAI, http: httpx.AsyncClient, redis_url: str, tmp_path: Path
) -> None:
    slow = save_model(tmp_path / "scripted", {"step_s": 0.03})
    async with consuming(redis_url, slow, max_num_seqs=8):
        batch = await make_batch(client, input_of([request_line(f"c{n}") for n in range(400)]))
        got, incomplete, file_id = b"", True, None
        while incomplete:
            if file_id is None:
                file_id = (await client.batches.retrieve(batch.id)).output_file_id
                await asyncio.sleep(0.05)
                continue
            at = got.count(b"\n")
            reply = await http.get(f"/v1/files/{file_id}/content?offset={at}")
            assert reply.status_code == 200
            incomplete = reply.headers["X-Incomplete"] == "true"
            got += reply.content
            assert got.count(b"\n") == int(reply.headers["X-Last-Line"])
            assert incomplete or got
            await asyncio.sleep(0.1)
        done = await ended(client, batch.id)
    assert done.output_file_id == file_id
    assert got == (await client.files.content(file_id)).read()
    assert len({json.loads(line)["custom_id"] for line in got.splitlines()}) == 400


async def test_bad_lines_can_be_read_before_anything_has_run(client: AsyncOpenAI) -> None:
    batch = await make_batch(client, input_of([request_line("a"), "{"]))
    batch = await reached(client, batch.id, ("in_progress",))
    assert (batch.output_file_id, batch.request_counts and batch.request_counts.failed) == (None, 1)
    (line,) = await lines_of(client, batch.error_file_id)
    assert line["error"]["code"] == "invalid_json_line"


async def test_a_file_that_a_batch_writes_stays_and_one_that_it_reads_only_goes_from_sight(
    client: AsyncOpenAI, redis_url: str, tmp_path: Path
) -> None:
    slow = save_model(tmp_path / "scripted", {"step_s": 0.05})
    async with consuming(redis_url, slow, max_num_seqs=8):
        batch = await make_batch(client, input_of([request_line(f"c{n}") for n in range(200)]))
        output = (await has_output(client, batch.id)).output_file_id
        assert output is not None
        with pytest.raises(openai.ConflictError, match="is being written by"):
            await client.files.delete(output)
        assert (await client.files.retrieve(output)).bytes > 0
        assert (await client.files.delete(batch.input_file_id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(batch.input_file_id)
        done = await ended(client, batch.id)
    assert len(await lines_of(client, done.output_file_id)) == 200


async def test_a_file_that_was_deleted_is_no_batchs_input_though_another_still_reads_it(
    client: AsyncOpenAI,
) -> None:
    """One made before the deletion reads it to its end, also where its validation begins after that."""
    reading = await make_batch(client, input_of([request_line("a")]))
    await reached(client, reading.id, ("in_progress",))
    assert (await client.files.delete(reading.input_file_id)).deleted
    late = await client.batches.create(
        input_file_id=reading.input_file_id, endpoint=CHAT, completion_window="24h"
    )
    done = await ended(client, late.id)
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert [(one.code, one.param) for one in done.errors.data] == [("invalid_request", "file_id")]


async def test_outputs_expire_when_asked_to(client: AsyncOpenAI, consumer: None) -> None:
    batch = await make_batch(
        client,
        input_of([request_line("a")]),
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    done = await ended(client, batch.id)
    assert done.output_file_id is not None
    file = await client.files.retrieve(done.output_file_id)
    assert file.expires_at == file.created_at + 3600
    assert file.purpose == "batch_output"


async def test_the_end_of_a_batch_is_told_to_its_tenant(redis_url: str, tmp_path: Path) -> None:
    alice, _ = await add_key(tmp_path, "alice")
    async with (
        receiving() as receiver,
        serving(redis_url, tmp_path, private_webhooks=True, auth="keys") as url,
        httpx.AsyncClient(base_url=url, headers=alice) as http,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=alice["Authorization"][7:]) as client,
    ):
        made = (await http.post("/v1/penstock/webhooks", json={"url": receiver.url})).json()
        batch = await make_batch(client, b"")
        await receiver.until(1)
        event = event_of(receiver.got[0], made["secret"])
    assert (event["type"], event["data"]) == ("batch.failed", {"id": batch.id})


async def test_a_keys_limit_on_queued_tokens_bounds_its_batch_in_the_queue(
    redis_url: str, tmp_path: Path, server: Server
) -> None:
    """Never refused for it: rows wait in their input. Each counts about forty."""
    limited, key = await add_key(tmp_path, "alice", queued_tokens=200)
    async with (
        serving(redis_url, tmp_path, auth="keys") as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=limited["Authorization"][7:]) as client,
    ):
        batch = await make_batch(client, input_of([request_line(f"c{n}") for n in range(50)]))
        with server.client() as redis:
            await eventually(lambda: redis.xlen(KEYS.jobs(key.lane)) >= 3)
            await reached(client, batch.id, ("in_progress",))
            assert redis.xlen(KEYS.jobs(key.lane)) <= 7
        async with consuming(redis_url, save_model(tmp_path / "scripted")):
            done = await ended(client, batch.id)
    assert done.request_counts is not None
    assert done.request_counts.completed == 50


async def test_all_batches_of_a_key_share_its_limit(redis_url: str, tmp_path: Path, server: Server) -> None:
    """Whichever gateways drive them: each has an equal part, which grows as others end."""
    limited, key = await add_key(tmp_path, "alice", queued_tokens=400)
    rows = input_of([request_line(f"c{n}") for n in range(30)])
    with server.client() as redis:
        redis.zadd(KEYS.gateway_batches(key.id), {"batch_dead": 1, "batch_a": 2e15, "batch_b": 2e15})
        async with (
            serving(redis_url, tmp_path, auth="keys") as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=limited["Authorization"][7:]) as client,
        ):
            batch = await make_batch(client, rows)
            await reached(client, batch.id, ("in_progress",))
            await eventually(lambda: redis.xlen(KEYS.jobs(key.lane)) >= 3)
            # A third of the limit, with itself: two more, and none for the one that nobody speaks for.
            assert redis.xlen(KEYS.jobs(key.lane)) <= 5
            assert redis.zrange(KEYS.gateway_batches(key.id), 0, -1) == [
                batch.id.encode(),
                b"batch_a",
                b"batch_b",
            ]
            redis.zrem(KEYS.gateway_batches(key.id), "batch_a", "batch_b")
            await eventually(lambda: redis.xlen(KEYS.jobs(key.lane)) >= 8)
            assert redis.xlen(KEYS.jobs(key.lane)) <= 12
            await client.batches.cancel(batch.id)
            await ended(client, batch.id)
            assert not redis.exists(KEYS.gateway_batches(key.id))


@pytest.mark.usefixtures("consumer")
async def test_the_examples(client: AsyncOpenAI, url: str, tmp_path: Path) -> None:
    """As they stand in examples/clients; the one in JavaScript is tried by `make test-js`."""
    await has_model(client)
    out, err = await said(sys.executable, str(CLIENTS / "openai_batch.py"), url, "Hello", "there")
    assert sorted(line.partition(" ")[0] for line in out.splitlines()) == ["request-0", "request-1"]
    assert err.startswith("completed ")
    (tmp_path / "requests.jsonl").write_bytes(input_of([request_line("a"), "{"]))
    out, _ = await said("bash", str(CLIENTS / "openai_batch.sh"), url, str(tmp_path / "requests.jsonl"))
    good, bad = map(json.loads, out.splitlines())
    assert (good["custom_id"], good["response"]["status_code"]) == ("a", 200)
    assert bad["error"]["code"] == "invalid_json_line"
