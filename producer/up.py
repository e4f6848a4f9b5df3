"""`penstock up` and `penstock consumer`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Container, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError
from penstock.installed import refuse_clash
from producer.consumer_process import command, take_slot
from producer.errors import UsageError
from producer.gateway.command import gateway_beside
from producer.gateway.flags import settings_of
from producer.gateway.settings import GatewaySettings
from producer.serving import (
    Site,
    Stop,
    consumer_beside,
    consumers_of,
    first_of,
    model_flags,
    open_site,
    require_suitable,
    until_ready,
)
from producer.where import Where, find_server, short


def run_up(
    where: Where,
    model: str | None,
    flags: Sequence[str],
    port: int | None,
    *,
    gateway: Mapping[str, Any] | None = None,
) -> int:
    """Serve until Ctrl-C; 0 where the consumer drained in order.

    Args:
        gateway: settings of a gateway beside the consumer; None for no gateway.
    """
    if where.redis is not None and port is not None:
        raise UsageError("--port is for the embedded server, and --redis names another")
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"--port is {port}; it must be 1 to 65535")
    with open_site(where, (*model_flags(model), *flags), say) as site:
        if site.server is not None and port is not None:
            site.server.open_port(port)
        settings = None if gateway is None else settings_of(gateway, where, site.url)
        return asyncio.run(_serve(site, where, port, settings))


def become_consumer(where: Where, model: str | None, flags: Sequence[str]) -> int:
    """Replace this process by a consumer of a running server; returns only by an exception."""
    refuse_clash()
    url = find_server(where)
    asyncio.run(require_suitable(url, say))
    flags = (*model_flags(model), *flags)
    if where.redis is not None or "--name" in flags:
        _exec(command(url, flags))
    with closing(take_slot(where.folder)) as slot:
        os.set_inheritable(slot.lock.fileno(), True)
        _exec(command(url, ("--name", slot.name, *flags)))
    raise AssertionError("not reached")


def say(words: str) -> None:
    """Tell something, beside the consumer's own lines."""
    print(f"penstock: {words}", file=sys.stderr, flush=True)


async def _serve(site: Site, where: Where, port: int | None, gateway: GatewaySettings | None) -> int:
    kind = await require_suitable(site.url, say)
    _introduce(site, where, kind, port)
    # A predecessor of the same name that was killed looks ready for some seconds more.
    earlier = await consumers_of(site.url)
    with Stop().listening() as stop:
        async with consumer_beside(site, stop, say) as consumer:
            assert consumer is not None
            async with _gateway(gateway, stop):
                announcing = asyncio.create_task(_announce(site, where, earlier))
                try:
                    await first_of(consumer, stop.asked.wait())
                finally:
                    announcing.cancel()
                say("draining: running jobs are finished or handed back; Ctrl-C again ends at once")
        status = consumer.result()
    say("stopped; what was queued is kept" if status == 0 else "stopped at once; what ran will be run again")
    return 130 if stop.insisted.is_set() else int(status != 0)


@asynccontextmanager
async def _gateway(settings: GatewaySettings | None, stop: Stop) -> AsyncGenerator[None]:
    if settings is None:
        yield
        return
    async with gateway_beside(settings, stop, say) as url:
        if url is not None:
            say(f"gateway  {url} has a page, and OpenAI's API under /v1")
        yield


def _introduce(site: Site, where: Where, kind: str, port: int | None) -> None:
    if site.server is not None:
        how = "started" if site.server.started else "found running"
        say(f"server   {kind}, {how}; data in {short(site.server.folder)}")
    else:
        say(f"server   {kind}")
    say(f"         {site.url}" + (f" and redis://127.0.0.1:{port}" if port is not None else ""))
    say("consumer starting; loading its model")


async def _announce(site: Site, where: Where, earlier: Container[str]) -> None:
    model = await until_ready(site.url, site.own, earlier)
    say(f"ready    model {short(Path(model)) if model.startswith('/') else model}")
    say(f'try      penstock submit{where.flag} "What is 12 + 30?"')


def _exec(words: list[str]) -> None:
    try:
        os.execv(words[0], words)
    except OSError as error:
        raise PenstockError(f"the consumer can't be started: {error}") from None
