"""schemathesis over the served OpenAPI document: no 5xx, nothing that the document does not say.

A few examples of each operation here; `make fuzz-api` tries more (PENSTOCK_FUZZ_EXAMPLES).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from producer.gateway.app import make_app
from producer.gateway.openapi import document_of
from producer.gateway.settings import GatewaySettings
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.producer.gateway.running import serving

EXAMPLES = int(os.environ.get("PENSTOCK_FUZZ_EXAMPLES", "3"))
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


class Loop(threading.Thread):
    """A gateway and a consumer in a loop of their own: schemathesis asks from this thread, and blocks it."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        super().__init__(daemon=True)
        self._redis_url, self._folder = redis_url, folder
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self.url = ""
        self.ready = threading.Event()

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self.ready.set()
            self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self.join(30)

    async def _serve(self) -> None:
        model = save_model(self._folder / "scripted")
        async with (
            consuming(self._redis_url, model),
            serving(self._redis_url, self._folder / "gateway", max_wait_s=20) as self.url,
        ):
            async with httpx.AsyncClient(base_url=self.url) as http, asyncio.timeout(20):
                while not (await http.get("/health/ready")).is_success:  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(0.05)
            self.ready.set()
            await self._ended.wait()


@pytest.fixture(scope="module")
def url(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server.client() as redis:
        redis.flushall()
    loop = Loop(server.url, tmp_path_factory.mktemp("fuzz"))
    loop.start()
    assert loop.ready.wait(30)
    assert loop.url, "the gateway did not start"
    yield loop.url
    loop.stop()


described = document_of(make_app(GatewaySettings(redis="redis://nowhere", folder=Path("nowhere"))))
schema = schemathesis.openapi.from_dict(described)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # schemathesis does, in its strategies
@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="PENSTOCK_FUZZ_EXAMPLES" not in os.environ,
)
def test_nothing_that_is_sent_makes_it_fail(case: schemathesis.Case, url: str, server: Server) -> None:
    """Or say what the document does not."""
    if case.path.endswith("/pause"):  # undone, or all that follows would wait
        with server.client() as redis:
            redis.hdel("penstock:{default}:lanes", "*", "standard")
    case.call_and_validate(base_url=url, checks=list(CHECKS), timeout=30)
