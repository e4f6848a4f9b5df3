"""/v1/batches by OpenAI's own client: made, validated, run, listed, cancelled, retried."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.producer.gateway.batching import answers_of, ended, input_of, make_batch, request_line


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client of the gateway."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.usefixtures("consumer")
async def test_a_batch_from_upload_to_answers(client: AsyncOpenAI) -> None:
    data = input_of([request_line(f"c{n}", f"prompt {n}") for n in range(30)])
    batch = await make_batch(client, data, metadata={"project": "x"})
    assert batch.status == "validating"
    done = await ended(client, batch.id)
    assert done.status == "completed", done
    replies, failed = await answers_of(client, done)
    assert sorted(replies) == sorted(f"c{n}" for n in range(30))
    assert failed == {}
