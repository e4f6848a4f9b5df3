"""`penstock gateway`: the application on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from litestar import Litestar

from penstock.errors import PenstockError
from producer.gateway.gateway import Gateway
from producer.gateway.limits import bounded_protocol
from producer.gateway.settings import GatewaySettings


def listen(settings: GatewaySettings) -> socket.socket:
    """A socket that is bound already, so that a taken port is told before anything starts.

    Raises:
        PenstockError: the address can't be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named, or asyncio leaves Nagle's algorithm on for what is accepted: 40 ms a reply.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((settings.host, settings.port))
    except OSError as error:
        taken.close()
        raise PenstockError(
            f"the gateway can't listen on {settings.host}:{settings.port}: {error.strerror}; "
            "--port names another, 0 a free one"
        ) from None
    return taken


def url_of(settings: GatewaySettings, taken: socket.socket) -> str:
    """Where it is reached."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http{'s' if settings.tls_certificate else ''}://{host}:{taken.getsockname()[1]}"


class _Server(uvicorn.Server):
    """uvicorn's server, with the process's signals left to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()


class GatewayServer:
    """A gateway in this process's event loop."""

    def __init__(self, app: Litestar, settings: GatewaySettings) -> None:
        self._app = app
        self._server = _Server(
            uvicorn.Config(
                app.state.telemetry.watch(app),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                http=bounded_protocol(settings),
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=settings.grace_s,
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            )
        )

    async def run(self, taken: socket.socket) -> None:
        """Serves until `stop`.

        Raises:
            PenstockError: the application did not start; its log says why.
        """
        with taken:  # uvicorn leaves it open where the application does not start
            await self._server.serve([taken])
        if not self._server.started:
            raise PenstockError("the gateway did not start")

    async def started(self) -> None:
        """Returns once requests are answered."""
        await self._server.listening.wait()

    def stop(self) -> None:
        """Ends `run` once requests under way are answered; streams that can be resumed end at once."""
        gateway: Gateway | None = self._app.state.get("gateway")
        if gateway is not None:
            gateway.closing.set()
        self._server.should_exit = True

    def kill(self) -> None:
        """Ends `run` without waiting for anything, after `stop`."""
        self._server.force_exit = True
