"""The engine's child process, over a real socket pair."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.config import EngineConfig
from engine.messages import (
    HEADER,
    Abort,
    Command,
    Fatal,
    Loading,
    Ready,
    Report,
    Step,
    Submit,
    encode_frame,
    report_decoder,
)
from engine.process import Link
from engine.request import Output, Request, RequestParams
from tests.engine.run import greedy
from tests.engine.tiny_models import VOCAB_SIZE, WINDOW


class Child:
    """A running engine process and our end of its socket."""

    def __init__(self, config: str, program: str | None = None) -> None:
        """`program` runs instead of `python -m engine.process`, with the same arguments."""
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(60)
        how = ["-m", "engine.process"] if program is None else ["-c", program]
        self.process = subprocess.Popen(
            [sys.executable, *how, str(theirs.fileno()), config],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()

    def send(self, command: Command) -> None:
        self.sock.sendall(encode_frame(command))

    def read(self) -> Report | None:
        header = self._read_exactly(HEADER.size)
        return report_decoder.decode(self._read_exactly(HEADER.unpack(header)[0])) if header else None

    def read_past_loading(self) -> Report | None:
        while isinstance(report := self.read(), Loading):
            assert report.phase
        return report

    def outputs_until(self, request_ids: set[str]) -> dict[str, list[Output]]:
        """Outputs by request until all of these have ended."""
        outputs: dict[str, list[Output]] = {}
        while request_ids:
            step = self.read()
            assert isinstance(step, Step), step
            for output in step.outputs:
                outputs.setdefault(output.request_id, []).append(output)
                if output.finish_reason or output.error:
                    request_ids = request_ids - {output.request_id}
        return outputs

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                assert not data, "a frame was cut off"
                break
            data += part
        return data

    def close(self) -> int:
        self.sock.close()
        return self.process.wait(timeout=30)


def config_of(folder: Path | str, **settings: Any) -> str:
    return msgspec.json.encode(EngineConfig(model=str(folder), num_threads=1, **settings)).decode()


def request(name: str, prompt: list[int], max_tokens: int = 5) -> Request:
    return Request(request_id=name, prompt_token_ids=prompt, params=greedy(max_tokens))


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def starting(config: str, program: str | None = None) -> Child:
        children.append(Child(config, program))
        return children[-1]

    yield starting
    for child in children:
        child.sock.close()
        child.process.kill()
        child.process.communicate()


def test_the_life_of_an_engine(start: Callable[..., Child], tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("llama")
    child = start(config_of(folder))
    ready = child.read_past_loading()
    assert isinstance(ready, Ready)
    assert ready.model == str(folder)
    assert (Path(ready.model_path) / "config.json").is_file()
    assert (ready.vocab_size, ready.max_model_len, ready.eos_token_ids) == (VOCAB_SIZE, WINDOW, [])
    assert ready.num_blocks * ready.block_size >= ready.max_model_len

    # Signals are for the parent: this one goes on.
    child.process.send_signal(signal.SIGINT)
    child.process.send_signal(signal.SIGTERM)

    bad = request("too long", [1] * WINDOW)
    nan = Request(
        request_id="nan",
        prompt_token_ids=[1],
        params=RequestParams(max_tokens=3, seed=0, temperature=float("nan")),
    )
    child.send(Submit([request("a", [1, 2]), bad, request("long", [3], 100), nan, request("b", [1, 2])]))
    outputs = child.outputs_until({"a", "b", "too long", "nan"})
    assert "the window is" in (outputs["too long"][-1].error or "")
    assert "temperature is nan" in (outputs["nan"][-1].error or "")
    assert [o.token_ids for o in outputs["a"]] == [o.token_ids for o in outputs["b"]]
    assert sum(len(o.token_ids) for o in outputs["a"]) == 5

    child.send(Abort(["long", "never seen"]))
    while not (isinstance(step := child.read(), Step) and step.num_running == 0):
        pass
    assert step.num_free_blocks == ready.num_blocks

    child.send(Submit([request("last", [9])]))
    assert child.outputs_until({"last"})["last"][-1].finish_reason == "length"
    assert child.close() == 0


def test_closing_in_the_middle_of_work_ends_it(
    start: Callable[..., Child], tiny_model: Callable[[str], Path]
) -> None:
    child = start(config_of(tiny_model("llama")))
    assert isinstance(child.read_past_loading(), Ready)
    child.send(Submit([request(str(i), [i], 150) for i in range(64)]))
    assert isinstance(child.read(), Step)
    assert child.close() == 0


def test_closing_while_it_loads_ends_it(
    start: Callable[..., Child], tiny_model: Callable[[str], Path]
) -> None:
    child = start(config_of(tiny_model("llama")))
    assert child.close() == 0


def planting(code: str) -> str:
    """A program that runs this code and then is `engine.process`."""
    return f"import sys, time\n{code}\nfrom engine.process import main\nsys.exit(main(sys.argv))"


def test_closing_during_a_download_ends_it(start: Callable[..., Child]) -> None:
    slow = "import huggingface_hub\nhuggingface_hub.snapshot_download = lambda *a, **k: time.sleep(600)"
    child = start(config_of("owner/name"), planting(slow))
    while not (isinstance(report := child.read(), Loading) and report.phase == "downloading owner/name"):
        assert isinstance(report, Loading)
    before = time.monotonic()
    assert child.close() == 0
    assert time.monotonic() - before < 10


def test_closing_during_a_long_step_ends_it(
    start: Callable[..., Child], tiny_model: Callable[[str], Path]
) -> None:
    slow = """
from engine.scheduler import Scheduler
def abort(*args):
    print("in a long step", file=sys.stderr, flush=True)
    time.sleep(600)
Scheduler.abort = abort
"""
    child = start(config_of(tiny_model("llama")), planting(slow))
    assert isinstance(child.read_past_loading(), Ready)
    child.send(Abort(["any"]))
    assert child.process.stderr is not None
    while "in a long step" not in child.process.stderr.readline():
        assert child.process.poll() is None
    assert child.close() == 0


def test_an_exception_in_a_step_is_fatal_in_words(
    start: Callable[..., Child], tiny_model: Callable[[str], Path]
) -> None:
    failing = """
from engine.runner import Runner
whole = Runner.forward
def forward(self, batch):
    assert len(batch.rows) < 2, "planted"
    whole(self, batch)
Runner.forward = forward
"""
    child = start(config_of(tiny_model("llama")), planting(failing))
    assert isinstance(child.read_past_loading(), Ready)
    child.send(Submit([request("a", [1]), request("b", [1])]))
    report = child.read()
    assert isinstance(report, Fatal)
    assert "internal error" in report.message
    assert "planted" in report.message
    assert child.process.wait(timeout=30) == 1


def test_steps_without_outputs_are_reported_where_the_last_report_is_old(
    start: Callable[..., Child], tiny_model: Callable[[str], Path]
) -> None:
    at_once = "import engine.process\nengine.process._SILENCE_S = 0"
    child = start(config_of(tiny_model("llama"), max_num_seqs=4, max_num_batched_tokens=4), planting(at_once))
    assert isinstance(child.read_past_loading(), Ready)
    child.send(Submit([request("a", [1] * 16, max_tokens=1)]))
    steps: list[Step] = []
    while not steps or not steps[-1].outputs:
        step = child.read()
        assert isinstance(step, Step)
        steps.append(step)
    assert [len(step.outputs) for step in steps] == [0, 0, 0, 1], "a prefill in four chunks"


def test_a_request_after_the_last_one_was_aborted_has_its_own_blocks(
    start: Callable[..., Child], tiny_model: Callable[[str], Path]
) -> None:
    child = start(config_of(tiny_model("llama")))
    assert isinstance(child.read_past_loading(), Ready)
    child.send(Submit([request("alone", [5] * 90, 20)]))
    alone = child.outputs_until({"alone"})["alone"]
    for name in ("a", "b", "c"):
        child.send(Submit([request(name, [7] * 90, 60)]))
        assert isinstance(child.read(), Step)
        child.send(Abort([name]))
        while not (isinstance(step := child.read(), Step) and step.num_running == 0):
            assert isinstance(step, Step), step
    child.send(Submit([request("again", [5] * 90, 20)]))
    again = child.outputs_until({"again"})["again"]
    assert [o.token_ids for o in again] == [o.token_ids for o in alone]


def test_a_partial_frame_does_not_end_the_wait() -> None:
    ours, theirs = socket.socketpair()
    frame = encode_frame(Abort(["a"]))
    with ours, theirs:
        link = Link(theirs)
        taken: list[Command] = []
        waiting = threading.Thread(target=lambda: taken.extend(link.commands(wait=True)))
        waiting.start()
        for part in (frame[:2], frame[2:7], frame[7:-1]):
            ours.sendall(part)
            waiting.join(0.05)
            assert waiting.is_alive(), "the wait ended without a command"
        ours.sendall(frame[-1:])
        waiting.join(10)
        assert taken == [Abort(["a"])]


def test_two_sides_that_write_before_they_read_do_not_wait_for_each_other(
    start: Callable[..., Child], tiny_model: Callable[[str], Path]
) -> None:
    """More bytes each way than the socket holds, and we read nothing until all of ours are written."""
    child = start(config_of(tiny_model("llama")))
    assert isinstance(child.read_past_loading(), Ready)
    names = {f"{i}-{'x' * 1000}" for i in range(2000)}  # each is answered by its long name, too
    refused = [request(name, []) for name in names]
    for begin in range(0, len(refused), 20):
        child.send(Submit(refused[begin : begin + 20]))
        time.sleep(0.001)
    assert set(child.outputs_until(set(names))) == names
    assert child.close() == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of("/nowhere/at/all"), "there is no folder /nowhere/at/all"),
        ('{"model": "x", "max_num_sequences": 3}', "unknown field `max_num_sequences`"),
    ],
)
def test_fatal_says_what_is_wrong(config: str, words: str, start: Callable[..., Child]) -> None:
    child = start(config)
    report = child.read_past_loading()
    assert isinstance(report, Fatal)
    assert words in report.message
    assert child.read() is None
    assert child.process.wait(timeout=30) == 1


def test_a_broken_model_is_fatal_in_words(start: Callable[..., Child], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')
    report = start(config_of(tmp_path)).read_past_loading()
    assert isinstance(report, Fatal)
    assert "MambaForCausalLM is not supported" in report.message
