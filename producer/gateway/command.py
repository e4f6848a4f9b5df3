"""`penstock gateway`, and the gateway that `up` and `demo` have beside them."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from penstock.errors import InstallationError, PenstockError, ServerUnavailable
from penstock.telemetry.logs import set_up
from producer.gateway.installed import require_gateway
from producer.gateway.settings import GatewaySettings
from producer.serving import Stop, first_of, require_suitable

if TYPE_CHECKING:
    from producer.gateway.serve import GatewayServer

Say = Callable[[str], None]

TRIED_PORTS: Final = 20
"""Ports behind a taken one that are tried before any free one is."""

log = logging.getLogger("gateway")


def run_gateway(settings: GatewaySettings) -> int:
    """Serve until SIGTERM or Ctrl-C, and then until what is under way is answered.

    Raises:
        PenstockError: it could not start.
    """
    require_gateway()
    set_up(settings.log_format)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every request
    try:
        import uvloop  # absent on Windows, and not needed for anything but speed
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    return run(_serve(settings))


async def _serve(settings: GatewaySettings) -> int:
    from producer.gateway.serve import listen, require_startable, url_of

    require_startable(settings)
    try:
        await require_suitable(settings.redis, log.warning)
    except ServerUnavailable as error:
        log.warning("the queue can't be reached, requests are answered by 503 until it can: %s", error)
    taken = listen(settings)
    warn_of_openness(settings, log.warning)
    server = _make(settings)
    _collect_rarely()
    with Stop().listening() as stop:
        running = asyncio.create_task(server.run(taken))
        started = asyncio.create_task(server.started())
        try:
            await asyncio.wait((running, started), return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                log.info("listening on %s", url_of(settings, taken))
            await first_of(running, stop.asked.wait())
            log.info("draining: what is under way is answered")
        finally:
            started.cancel()
            await _end(server, running, stop)
    await running
    return 130 if stop.insisted.is_set() else 0


@asynccontextmanager
async def gateway_beside(settings: GatewaySettings, stop: Stop, say: Say) -> AsyncGenerator[str | None]:
    """A gateway in this process while the context lasts; its URL, or None where there can be none.

    A port that is taken is no reason to fail here: the next free one is used instead, in words.
    """
    try:
        require_gateway()
        # Its libraries take a while to load, in which a consumer can load its model.
        await asyncio.to_thread(import_module, "producer.gateway.app")
        from producer.gateway.serve import require_startable

        require_startable(settings)
        taken, settings = _listen_nearby(settings, say)
    except (InstallationError, PenstockError) as error:
        say(f"no gateway: {error}")
        yield None
        return
    from producer.gateway.serve import url_of

    server, url = _make(settings), url_of(settings, taken)
    running = asyncio.create_task(server.run(taken))
    started = asyncio.create_task(server.started())
    try:
        await asyncio.wait((running, started), return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            with suppress(PenstockError):
                await running
            say("no gateway: it did not start")
        yield url if started.done() else None
    finally:
        started.cancel()
        await _end(server, running, stop)
        await asyncio.gather(running, return_exceptions=True)


def warn_of_openness(settings: GatewaySettings, say: Say) -> None:
    """Say so where everybody who reaches the gateway may use all of it."""
    if settings.auth == "off" and not settings.is_loopback:
        say(
            f"--auth off: whoever can reach {settings.host} may use this gateway, and operate the queue; "
            "`penstock keys create` and --auth keys close it"
        )
    if settings.auth != "off" and not settings.is_loopback and settings.tls_certificate is None:
        say("keys cross the network in the clear: give --tls-certificate and --tls-key, or use a proxy")


def _collect_rarely() -> None:
    """Look for reference cycles after 50,000 new containers rather than 700, and never again through what has
    been loaded: a look through all of it takes 60 ms, in which no stream moves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _make(settings: GatewaySettings) -> GatewayServer:
    from producer.gateway.app import make_app
    from producer.gateway.serve import GatewayServer

    return GatewayServer(make_app(settings), settings)


def _listen_nearby(settings: GatewaySettings, say: Say) -> tuple[socket.socket, GatewaySettings]:
    from producer.gateway.serve import listen

    wanted = settings.port
    last = min(wanted + TRIED_PORTS, 65535)
    for port in (*range(wanted, last), 0):
        try:
            taken = listen(replace(settings, port=port))
        except PenstockError:
            if port == 0:
                raise
            continue
        if port != wanted:
            say(f"gateway  port {wanted} is taken; --gateway-port names another")
        return taken, replace(settings, port=taken.getsockname()[1])
    raise AssertionError("not reached")


async def _end(server: GatewayServer, running: asyncio.Task[None], stop: Stop) -> None:
    """Drain; at once where the stop is insisted on."""
    server.stop()
    with suppress(PenstockError):
        await first_of(running, stop.insisted.wait())
    if not running.done():
        server.kill()
