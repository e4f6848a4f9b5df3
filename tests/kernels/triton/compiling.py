"""Compiles what the thunks of a case module launch, for a GPU that need not be there.

    python -m tests.kernels.triton.compiling tests.kernels.triton.cases_norm 90

Each thunk of the module's COMPILED calls a Triton implementation with tensors of the processor. Nothing is
launched: every launch is turned into a compilation for the architecture. Prints one JSON line for each kernel
(see `Compiled`), and one with `error` for each thunk that raised or launched nothing.
"""

from __future__ import annotations

import importlib
import json
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


def main(module: str, arch: str) -> int:
    """0 if everything compiled."""
    triton.runtime.driver.set_active(AbsentDevice(int(arch)))
    device.ASSUMED_ARCH = int(arch)
    return 0 if compile_thunks(importlib.import_module(module).COMPILED) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
