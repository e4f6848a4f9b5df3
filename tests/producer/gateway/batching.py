"""Batches from a client's side: inputs, and the lines of outputs by their custom_id."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

from openai import AsyncOpenAI
from openai.types import Batch

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def request_line(custom_id: str, prompt: str = "hello", *, url: str = CHAT, **body: Any) -> dict[str, Any]:
    """One request of an input, of two tokens."""
    whole = {"model": "scripted", "messages": [{"role": "user", "content": prompt}], "max_tokens": 2, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": whole}


def input_of(lines: list[Any]) -> bytes:
    """An input: objects as JSON, text as it is."""
    return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()


def bad_lines() -> list[tuple[Any, str, str | None]]:
    """Ten kinds of bad lines: the line, its code and its param."""
    good = request_line("x")
    body: dict[str, Any] = good["body"]

    def without(name: str) -> dict[str, Any]:
        return {key: value for key, value in good.items() if key != name}

    def with_body(**changed: Any) -> dict[str, Any]:
        whole = {**body, **changed}
        return {**good, "body": {key: value for key, value in whole.items() if value is not None}}

    return [
        ('{"custom_id": "torn', "invalid_json_line", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("body"), "missing_required_parameter", "body"),
        ({**good, "url": "/v1/embeddings"}, "invalid_url", "url"),
        (with_body(model="another"), "model_not_found", "body.model"),
        (with_body(model=None), "invalid_request", "body.model"),
        (with_body(messages=None), "invalid_request", "body.messages"),
        (with_body(stream=True), "streaming_unsupported", "body.stream"),
        ({**good, "custom_id": "c0"}, "duplicate_custom_id", "custom_id"),
    ]


def with_bad_lines(rows: int) -> tuple[list[Any], dict[int, tuple[str, str | None]]]:
    """An input whose every hundredth line is bad, in one of ten ways; by number, how those are told."""
    kinds = bad_lines()
    lines: list[Any] = [request_line(f"c{n}", f"prompt {n}") for n in range(rows)]
    wrong: dict[int, tuple[str, str | None]] = {}
    for at, number in enumerate(range(50, rows, 100)):
        line, code, param = kinds[at % len(kinds)]
        if isinstance(line, dict) and line.get("custom_id") == "x":
            line = {**line, "custom_id": f"c{number}"}
        lines[number] = line
        wrong[number] = code, param
    return lines, wrong


async def upload(client: AsyncOpenAI, data: bytes, name: str = "in.jsonl") -> str:
    """The id of a file of these bytes."""
    return (await client.files.create(file=(name, io.BytesIO(data)), purpose="batch")).id


async def make_batch(client: AsyncOpenAI, data: bytes, **wanted: Any) -> Batch:
    """A batch of this input."""
    given = {"endpoint": CHAT, "completion_window": "24h", **wanted}
    return await client.batches.create(input_file_id=await upload(client, data), **given)


async def ended(client: AsyncOpenAI, batch_id: str, timeout_s: float = 60) -> Batch:
    """The batch, once it has ended."""
    return await reached(client, batch_id, ENDED, timeout_s)


async def reached(
    client: AsyncOpenAI, batch_id: str, statuses: tuple[str, ...], timeout_s: float = 60
) -> Batch:
    """The batch, once its status is one of these."""
    async with asyncio.timeout(timeout_s):
        while (batch := await client.batches.retrieve(batch_id)).status not in statuses:
            assert batch.status not in ENDED, batch
            await asyncio.sleep(0.05)
    return batch


async def has_output(client: AsyncOpenAI, batch_id: str, lines: int = 1) -> Batch:
    """The batch, once so many of its rows have been answered and can be read."""
    async with asyncio.timeout(60):
        while True:
            batch = await client.batches.retrieve(batch_id)
            assert batch.request_counts is not None
            if batch.request_counts.completed >= lines and batch.output_file_id:
                return batch
            await asyncio.sleep(0.05)


async def has_model(client: AsyncOpenAI) -> None:
    """Returns once the gateway knows what is served: from then on it refuses any other model."""
    async with asyncio.timeout(20):
        while not (await client.models.list()).data:  # noqa: ASYNC110 - it is asked, it tells nobody
            await asyncio.sleep(0.05)


async def lines_of(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output; none where there is no file."""
    if file_id is None:
        return []
    text = (await client.files.content(file_id)).text
    return [json.loads(line) for line in text.splitlines()]


async def answers_of(client: AsyncOpenAI, batch: Batch) -> tuple[dict[str, Any], dict[int, Any]]:
    """Replies by custom_id, and error lines by their row of the input; each is there once."""
    outputs, errors = (
        await lines_of(client, batch.output_file_id),
        await lines_of(client, batch.error_file_id),
    )
    replies = {line["custom_id"]: line["response"]["body"] for line in outputs}
    failed = {int(line["id"][-10:], 16): line for line in errors}
    assert len(replies) == len(outputs)
    assert len(failed) == len(errors)
    return replies, failed
