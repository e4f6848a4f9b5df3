"""`penstock gateway`: the application on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from pathlib import Path

import uvicorn
from litestar import Litestar

from penstock.errors import PenstockError
from producer.errors import UsageError
from producer.gateway.gateway import Gateway
from producer.gateway.limits import bounded_protocol
from producer.gateway.settings import GatewaySettings
from producer.gateway.storage import open_storage


def require_startable(settings: GatewaySettings) -> None:
    """Look at what would otherwise be found out in the middle of a start, and told by a traceback.

    Raises:
        UsageError: the certificate can't be used, or files can't be kept where the settings say.
    """
    if settings.tls_certificate is not None and settings.tls_key is not None:
        _require_pair(settings.tls_certificate, settings.tls_key)
    open_storage(settings.storage_url)


def _require_pair(certificate: Path, key: Path) -> None:
    for flag, file in (("certificate", certificate), ("key", key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise UsageError(f"--tls-{flag}: {file} can't be read: {error.strerror}") from None
    try:
        # With a password, so that a key that has one is refused here instead of asking the terminal for it.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"TLS can't use {certificate} with {key}: {error}; both are PEM, the key is the certificate's "
            "and has no password"
        ) from None


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
        # Where the application does not start, uvicorn leaves the socket open, and the process.
        with taken, contextlib.suppress(SystemExit):
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
