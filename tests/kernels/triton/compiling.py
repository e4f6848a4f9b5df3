"""Compiles what the thunks of case modules launch, for a GPU that need not be there.

    python -m tests.kernels.triton.compiling 90 1 tests.kernels.triton.cases_norm

Each thunk of a module's COMPILED (every one, or as here said every n-th) calls a Triton implementation with
tensors of the processor. Nothing is launched: every launch is turned into a compilation for the architecture.
Prints one JSON line for each kernel (see `Compiled`), and one with `error` for each thunk that raised or
launched nothing. `compiled` does that in a process of its own, and holds each kernel against what fits.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.runtime
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels.triton import device

FOLDER = Path(__file__).parent
MODULES = [f"{__package__}.{path.stem}" for path in sorted(FOLDER.glob("cases_*.py"))]

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may have; CUDA C++ Programming Guide, technical specifications."""
REGISTER_LIMIT = 255
SPILL_LIMIT = 0
"""Bytes; a case module may allow its kernels more, by name: `SPILL_LIMITS`."""

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """One kernel that a thunk launched."""

    thunk: str
    kernel: str
    constants: dict[str, Any]
    """The constexpr parameters, and how many warps and stages."""
    shared: int
    """Bytes of shared memory of a program."""
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread's local memory, stack included."""


class AbsentDevice:
    """As much of a Triton driver as compilation asks for."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def record_launches(launched: list[Any]) -> None:
    """From now on, launches compile, and append the compiled kernel to `launched`."""
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        launched.append(kernel.result() if hasattr(kernel, "result") else kernel)
        return kernel

    JITFunction.run = compile_only


def compile_thunks(thunks: list[tuple[str, Callable[[], None]]]) -> bool:
    """Prints a line for each different kernel; False if a thunk failed."""
    launched: list[Any] = []
    record_launches(launched)
    reported: set[str] = set()
    good = True
    for name, thunk in thunks:
        launched.clear()
        try:
            with torch.inference_mode():
                thunk()
            assert launched, "launched nothing"
        except Exception:
            print(json.dumps({"thunk": name, "error": traceback.format_exc()}), flush=True)
            good = False
        for kernel in launched:
            if kernel.hash not in reported:
                reported.add(kernel.hash)
                print(json.dumps(asdict(describe(name, kernel))), flush=True)
    return good


def describe(thunk: str, kernel: Any) -> Compiled:
    """What a kernel needs of a multiprocessor, from its machine code."""
    metadata, source = kernel.metadata, kernel.src
    names = source.fn.arg_names
    constants = {names[path[0]]: str(value) for path, value in source.constants.items()}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
    return Compiled(
        thunk=thunk,
        kernel=metadata.name,
        constants=constants | {"num_warps": metadata.num_warps, "num_stages": metadata.num_stages},
        shared=metadata.shared,
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
    )


def check_compiled(modules: list[str], arch: int, every: int, cache: Path) -> None:
    """Every n-th thunk of the modules compiles, in a process of its own, and its kernels fit."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-m", f"{__package__}.compiling", str(arch), str(every), *modules],
        cwd=FOLDER.parents[2],
        env=env | {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    errors = [f"{line['thunk']}: {line['error']}" for line in lines if "error" in line]
    assert not errors, "\n".join(errors)
    assert process.returncode == 0, process.stderr
    spill_limits: dict[str, int] = {}
    for module in modules:
        spill_limits |= getattr(importlib.import_module(module), "SPILL_LIMITS", {})
    assert len(lines) >= len(modules), "not every module compiled something"
    for line in lines:
        assert line["shared"] <= SHARED_LIMITS[arch], line
        assert line["registers"] <= REGISTER_LIMIT, line
        assert line["spilled"] <= spill_limits.get(line["kernel"], SPILL_LIMIT), line


def main(arch: int, every: int, modules: list[str]) -> int:
    """0 if everything compiled."""
    triton.runtime.driver.set_active(AbsentDevice(arch))
    device.ASSUMED_ARCH = arch
    thunks = [thunk for module in modules for thunk in importlib.import_module(module).COMPILED[::every]]
    return 0 if compile_thunks(thunks) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
