"""What a config leaves open: chosen for the machine, and said in the log where it is less than was hoped."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import device
from engine.config import EngineConfig
from engine.device import resolve, set_arithmetic
from engine.errors import ConfigError
from engine.memory import kv_dtype


class Machine:
    """What `engine.device` asks torch and the file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._patch = monkeypatch
        self._gpu_file = tmp_path / "nvidia0"
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(device, "_GPU_FILE", self._gpu_file)
        self.has(gpu=False, usable=False)

    def has(
        self, *, gpu: bool, usable: bool, triton: bool = True, capability: tuple[int, int] = (9, 0)
    ) -> None:
        """gpu: one is there; usable: by this torch."""
        if gpu:
            self._gpu_file.touch()
        find_spec = importlib.util.find_spec
        self._patch.setattr(torch.cuda, "is_available", lambda: usable)
        self._patch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        self._patch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        self._patch.setattr(
            importlib.util,
            "find_spec",
            lambda name: (object() if triton else None) if name == "triton" else find_spec(name),
        )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Machine:
    caplog.set_level(logging.INFO)
    return Machine(monkeypatch, tmp_path)


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(model="m", **settings)


def test_a_machine_without_a_gpu_runs_on_the_processor(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = resolve(config())
    assert (chosen.ops, chosen.device, chosen.precision, chosen.overlap) == ("cpu", "cpu", "fp32", 0)
    assert (chosen.max_num_seqs, chosen.max_num_batched_tokens) == (64, 1024)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_gpu_is_used(machine: Machine) -> None:
    machine.has(gpu=True, usable=True)
    chosen = resolve(config())
    assert (chosen.ops, chosen.device, chosen.precision, chosen.overlap) == ("triton", "cuda", "bf16", 1)
    assert (chosen.max_num_seqs, chosen.max_num_batched_tokens) == (256, 8192)
    assert resolve(config(ops="cpu")).device == "cpu"
    assert resolve(config(device="cpu")).ops == "cpu"
    assert resolve(config(ops="reference", device="cuda")).device == "cuda"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpu": True, "usable": False}, "this torch .* cannot use it"),
        ({"gpu": True, "usable": True, "triton": False}, "triton is not installed"),
        ({"gpu": True, "usable": True, "capability": (7, 5)}, "compute capability 7.5, and 8.0 is needed"),
    ],
)
@pytest.mark.parametrize("ops", ["auto", "triton"])
def test_a_gpu_that_cannot_be_used_is_warned_of(
    ops: Any, given: dict[str, Any], words: str, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has(**given)
    assert resolve(config(ops=ops)).ops == "cpu"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(words, record.getMessage())
    with pytest.raises(ConfigError, match=words):
        resolve(config(ops=ops, device="cuda"))
    assert len(caplog.records) == 1


def test_triton_that_was_asked_for_falls_back_with_a_warning(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = resolve(config(ops="triton"))
    assert (chosen.ops, chosen.device) == ("cpu", "cpu")
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        "the op set 'cpu' runs instead of 'triton': torch finds no GPU",
    )


def test_the_interpreter_runs_triton_on_the_processor(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    chosen = resolve(config(ops="triton"))
    assert (chosen.ops, chosen.device, chosen.precision) == ("triton", "cpu", "fp32")
    assert resolve(config()).ops == "cpu"


def test_what_is_given_stays(machine: Machine) -> None:
    given = config(max_num_seqs=1500, precision="fp16", overlap=1, ops="reference")
    chosen = resolve(given)
    assert (chosen.max_num_seqs, chosen.max_num_batched_tokens) == (1500, 1500)
    assert (chosen.precision, chosen.overlap, chosen.ops) == ("fp16", 1, "reference")
    assert resolve(chosen) == chosen


def test_settings_that_contradict_each_other(machine: Machine) -> None:
    with pytest.raises(ConfigError, match="'fp8': the op set 'cpu' has no such cache"):
        resolve(config(kv_cache_dtype="fp8"))
    with pytest.raises(ConfigError, match="device is 'cuda': torch finds no GPU"):
        resolve(config(device="cuda"))
    with pytest.raises(ConfigError, match="ops is 'triton', which runs on a GPU, but device is 'cpu'"):
        resolve(config(ops="triton", device="cpu"))
    machine.has(gpu=True, usable=True)
    with pytest.raises(ConfigError, match=r"'int8': the op set 'triton' has no such cache .* only 'cpu' has"):
        resolve(config(kv_cache_dtype="int8"))
    with pytest.raises(ConfigError, match="device is 'cuda', but the op set 'cpu' runs on the processor"):
        resolve(config(ops="cpu", device="cuda"))


@pytest.mark.parametrize("of_device", ["cuda", "cpu"])
def test_arithmetic_is_set_for_a_gpu_alone(of_device: device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    asked: list[str] = []
    # Not set for real: on a processor too it would change the products of later tests.
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    matmul = torch.backends.cuda.matmul
    before = [getattr(matmul, name) for name in switches]
    try:
        for name in switches:
            setattr(matmul, name, True)
        set_arithmetic(of_device)
        assert asked == (["highest"] if of_device == "cuda" else [])
        assert [getattr(matmul, name) for name in switches] == [of_device == "cpu"] * 2
    finally:
        for name, value in zip(switches, before, strict=True):
            setattr(matmul, name, value)


@pytest.mark.parametrize(
    ("precision", "asked", "stored"),
    [
        ("fp32", "auto", torch.float32),
        ("fp32", "bf16", torch.bfloat16),
        ("fp32", "int8", torch.int8),
        ("bf16", "auto", torch.bfloat16),
        ("bf16", "bf16", torch.bfloat16),
        ("int8", "auto", torch.int8),
        ("int8", "int8", torch.int8),
        ("int8", "bf16", torch.bfloat16),
    ],
)
def test_what_keys_and_values_are_of(precision: Any, asked: Any, stored: torch.dtype) -> None:
    chosen = resolve(config(precision=precision, kv_cache_dtype=asked, ops="cpu"))
    assert kv_dtype(chosen) == stored
    assert resolve(chosen) == chosen
