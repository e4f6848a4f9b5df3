"""Compiles the C++ kernels, once for each kind of processor that they are dispatched to.

Run at install (hatch_build.py), or by hand: `python kernels/cpu/native/build.py`. It imports nothing but the
standard library. Without a compiler there are no libraries, and plain torch computes (`kernels.cpu`). In a
library stands the digest of its sources: one of other sources would read our structs wrongly.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
SOURCES: Final = (
    "activation.cpp",
    "attention.cpp",
    "elements.cpp",
    "heads.cpp",
    "linear.cpp",
    "logits.cpp",
    "logprob.cpp",
    "norm.cpp",
    "program.cpp",
    "sampling.cpp",
)
FLAGS: Final = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"),
    # A product and a sum are one instruction; nothing else may differ from IEEE arithmetic.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-Wno-ignored-attributes"),
    # GCC 12 says so of its own vector operations (bug 105593).
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
_AVX512: Final = ("-march=x86-64-v4", "-mprefer-vector-width=512")
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "avx2": ("-march=x86-64-v3",),
    "avx512": _AVX512,
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512_bf16": (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
    "avx512_fp16": (*_AVX512, "-mavx512vnni", "-mavx512fp16"),
}
"""Of x86-64, from the plainest: what each may use. Any other processor has the one target `plain`."""


class CompileError(Exception):
    """There is no compiler, or it refuses; its text says which, and the compiler's own words."""


def library(target: str) -> Path:
    """Where a target's library is, if it was built."""
    return FOLDER / f"native_{target}.so"


def targets() -> dict[str, tuple[str, ...]]:
    """Those of this kind of processor, with their flags."""
    return TARGETS if platform.machine() in ("x86_64", "AMD64") else {"plain": ()}


def is_current(target: str) -> bool:
    """Whether a target's library is there, and of these sources."""
    path = library(target)
    return path.is_file() and _digest().encode() in path.read_bytes()


def build() -> tuple[list[Path], list[CompileError]]:
    """Compiles every target that is not current. Returns the libraries, and why others are missing: an older
    compiler may not know the newest processors. Raises CompileError where nothing can be compiled."""
    if sys.platform != "linux":
        raise CompileError(f"the C++ kernels are built on Linux, not on {sys.platform}")
    missing = [target for target in targets() if not is_current(target)]
    if not missing:
        return [library(target) for target in targets()], []
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise CompileError("there is no C++ compiler (c++ or g++; CXX names another)")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        errors = [error for error in pool.map(_try, [compiler] * len(missing), missing) if error]
    if len(errors) == len(targets()):
        raise errors[0]
    return [library(target) for target in targets() if is_current(target)], errors


@lru_cache(maxsize=1)
def _digest() -> str:
    """Of all that a library is made of."""
    sources = sorted(
        file
        for file in FOLDER.iterdir()
        if file.suffix in (".cpp", ".inc", ".h") or file.name in ("build.py", "structs.py")
    )
    digest = hashlib.sha256()
    for file in sources:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"penstock kernels {digest.hexdigest()}"


def _try(compiler: str, target: str) -> CompileError | None:
    try:
        _compile(compiler, target)
    except CompileError as error:
        return error
    return None


def _compile(compiler: str, target: str) -> Path:
    """Objects first and then a library without OpenMP's own: which one that is, is found out at load."""
    path, flags = library(target), (*targets()[target], f'-DPENSTOCK_SOURCES="{_digest()}"')
    objects = [path.with_name(f"{path.stem}_{os.getpid()}_{source}.o") for source in SOURCES]
    made = path.with_suffix(f".{os.getpid()}.new")
    try:
        for source, made_object in zip(SOURCES, objects, strict=True):
            _run([compiler, *FLAGS, *flags, "-c", str(FOLDER / source), "-o", str(made_object)])
        _run([compiler, "-shared", *map(str, objects), "-o", str(made)])
        made.replace(path)
    finally:
        for leftover in (*objects, made):
            leftover.unlink(missing_ok=True)
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")


if __name__ == "__main__":
    try:
        built, refused = build()
        print(*built, *refused, sep="\n")
    except CompileError as error:
        sys.exit(str(error))
