"""A gateway with a consumer behind it, and OpenAI's own clients before it, unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pydantic
from msgspec import Struct
from openai import AsyncOpenAI, OpenAI

from penstock.client import Client
from penstock.keys import Keys
from penstock.link import Link
from penstock.presence import alive_consumers
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.producer.gateway.running import serving

MODEL = "scripted"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]

TEMPLATE = (
    "{% if tools %}Write <tool_call> to call: {{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content or m.tool_calls }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""One that takes tools, for a model that writes calls as Hermes does."""

Reply = TypeVar("Reply", bound=pydantic.BaseModel)


class Talk(Struct, frozen=True, kw_only=True):
    """Who can be asked."""

    url: str
    redis_url: str
    folder: Path
    openai: AsyncOpenAI
    http: httpx.AsyncClient
    queue: Client

    def sync(self) -> OpenAI:
        """The synchronous client; for a thread, as the gateway is in this one's event loop."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@asynccontextmanager
async def talking(
    redis_url: str,
    folder: Path,
    script: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    **consumer: Any,
) -> AsyncIterator[Talk]:
    """A talk with a model that follows a script."""
    model = save_model(folder / MODEL, script, TEMPLATE)
    async with (
        consuming(redis_url, model, **consumer),
        Client(redis_url) as queue,
        _present(redis_url),
        serving(redis_url, folder / "gateway", **(gateway or {})) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
    ):
        yield Talk(url=url, redis_url=redis_url, folder=folder, openai=openai, http=http, queue=queue)


@asynccontextmanager
async def _present(redis_url: str) -> AsyncIterator[None]:
    """Once a consumer has said which model it serves."""
    link = Link(redis_url)
    try:
        async with asyncio.timeout(20):
            while not await _is_ready(link):  # noqa: ASYNC110 - it is asked, it tells nobody
                await asyncio.sleep(0.02)
        yield
    finally:
        await link.aclose()


async def _is_ready(link: Link) -> bool:
    return any(beat.phase == "ready" for beat in (await alive_consumers(link, Keys())).values())


def strictly(kind: type[Reply], data: bytes | str) -> Reply:
    """A reply as OpenAI's type of it, with nothing coerced and nothing required left out."""
    return kind.model_validate_json(data, strict=True)
