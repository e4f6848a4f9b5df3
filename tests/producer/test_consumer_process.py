"""Keeping a consumer running, with scripted processes in its place."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from producer import consumer_process
from producer.consumer_process import ConsumerFailed, Supervisor, any_alive, take_slot
from tests.producer.conftest import eventually, until

STEADY = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open(sys.argv[1], "a").write("started\\n")
while True: time.sleep(0.05)
"""
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "a").write("started\\n")
time.sleep(60)
"""


def scripted(code: str, *args: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


def has_started(path: Path, times: int = 1) -> bool:
    return path.exists() and path.read_text().count("started") >= times


async def started(path: Path, times: int = 1) -> None:
    await eventually(lambda: has_started(path, times))


async def test_drain(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(scripted(STEADY, tmp_path / "log"), said.append)
    run = asyncio.create_task(supervisor.run())
    await started(tmp_path / "log")
    supervisor.drain()
    assert await run == 0
    assert said == []


async def test_drain_of_one_that_is_still_starting(tmp_path: Path) -> None:
    importing = "import sys, time; open(sys.argv[1], 'w').write('started'); time.sleep(60)"
    supervisor = Supervisor(scripted(importing, tmp_path / "log"), print)
    run = asyncio.create_task(supervisor.run())
    await started(tmp_path / "log")
    supervisor.drain()
    assert await run == 0


async def test_restart_after_a_death(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(scripted(STEADY, tmp_path / "log"), said.append, backoff_s=0.01)
    run = asyncio.create_task(supervisor.run())
    await started(tmp_path / "log")
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    await started(tmp_path / "log", 2)
    supervisor.drain()
    assert await run == 0
    assert said == ["the consumer was killed by SIGKILL; starting it again in 0 s"]


async def test_gives_up_with_the_end_of_its_log(tmp_path: Path) -> None:
    said: list[str] = []
    code = "import sys; print('no such model', file=sys.stderr); sys.exit(1)"
    supervisor = Supervisor(scripted(code), said.append, log=tmp_path / "log", backoff_s=0.001)
    with pytest.raises(ConsumerFailed, match=r"(?s)ended with status 1\. The end of .*no such model"):
        await supervisor.run()
    assert len(said) == 3


async def test_a_model_that_cannot_be_loaded_is_not_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    code = "import sys; print('there is no such folder', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ConsumerFailed, match="can't load its model; its last line says why"):
        await Supervisor(scripted(code), said.append).run()
    with pytest.raises(
        ConsumerFailed, match=r"(?s)can't load its model\. The end of .*there is no such folder"
    ):
        await Supervisor(scripted(code), said.append, log=tmp_path / "log").run()
    assert said == []


async def test_wrong_flags_are_not_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ConsumerFailed, match="ended with status 2"):
        await Supervisor(scripted("import sys; sys.exit(2)"), said.append).run()
    assert said == []


async def test_kill_ends_one_that_does_not_drain(tmp_path: Path) -> None:
    supervisor = Supervisor(scripted(STUBBORN, tmp_path / "log"), print)
    run = asyncio.create_task(supervisor.run())
    await started(tmp_path / "log")
    supervisor.drain()
    await asyncio.sleep(0.1)
    assert not run.done()
    supervisor.kill()
    assert await run == -signal.SIGKILL


async def test_cancelling_leaves_no_process(tmp_path: Path) -> None:
    supervisor = Supervisor(scripted(STUBBORN, tmp_path / "log"), print)
    run = asyncio.create_task(supervisor.run())
    await started(tmp_path / "log")
    pid = supervisor.pid
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert pid is not None
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notice of a parent's death is Linux's")
def test_a_killed_parent_drains_its_consumer(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from producer.consumer_process import Supervisor\n"
        "asyncio.run(Supervisor(sys.argv[1:], print).run())"
    )
    parent = subprocess.Popen(scripted(code, *scripted(STEADY, tmp_path / "log")))
    with parent:
        until(lambda: has_started(tmp_path / "log"))
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    child.wait(10)
    assert not child.is_running()


async def test_a_slot_is_taken_as_long_as_its_consumer_lives(tmp_path: Path) -> None:
    first, second = take_slot(tmp_path), take_slot(tmp_path)
    assert (first.name, second.name) == ("local-1", "local-2")
    second.close()
    supervisor = Supervisor(scripted(STEADY, tmp_path / "log"), print, first)
    run = asyncio.create_task(supervisor.run())
    await started(tmp_path / "log")
    first.close()
    assert any_alive(tmp_path)
    with_another = take_slot(tmp_path)
    assert with_another.name == "local-2"
    with_another.close()
    supervisor.drain()
    await run
    assert not any_alive(tmp_path)


def test_exit_statuses_in_words() -> None:
    assert consumer_process.describe(1) == "ended with status 1"
    assert consumer_process.describe(-9) == "was killed by SIGKILL"
    assert consumer_process.describe(-99) == "was killed by signal 99"
