"""C++ kernels behind a plain C interface: found, loaded, and called with pointers.

The library for the best target that this processor can run is loaded; it brings no OpenMP runtime of its own
but shares the one that torch has loaded, and with it torch's threads: two runtimes would fight for the cores.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from kernels.cpu.native.build import FOLDER, library, targets

log = logging.getLogger(__name__)

_AVX512: Final = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"})
_NEEDED: Final[dict[str, frozenset[str]]] = {
    "plain": frozenset(),
    "avx2": frozenset({"avx2", "fma", "bmi2", "f16c"}),
    "avx512": _AVX512,
    "avx512_vnni": _AVX512 | {"avx512_vnni"},
    # AMD's processors add products of bfloat16 at twice the rate of float32, Intel's at half of it.
    "avx512_bf16": _AVX512 | {"avx512_vnni", "avx512_bf16", "AuthenticAMD"},
    "avx512_fp16": _AVX512 | {"avx512_vnni", "avx512_fp16"},
}
_ASKED_FOR: Final = ("avx512_fp16",)
"""Used only where PENSTOCK_CPU_TARGET names it: no processor that multiplies float16 has run it yet."""
TYPES: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As attention.h names them."""


# Structs as bytes, which cost a third of what ctypes' structures do. Fields in the order of the header.
LINEAR_WEIGHT: Final = struct.Struct("@4P3i")
LINEAR_INPUT: Final = struct.Struct("=iQQqi4x")
"""Behind `LINEAR_WEIGHT`, which is the same for every call: PenstockLinear of linear.h."""
UNPACK: Final = struct.Struct("@4P4i")
"""PenstockUnpack of linear.h."""
ATTENTION: Final = struct.Struct("@9P2q7i2f2i")
"""PenstockAttention of attention.h."""
TILES: Final = struct.Struct("@3P3i")
"""PenstockTiles of attention.h."""
TAKE: Final = struct.Struct("@3P3qi")
"""PenstockTake of elements.h."""
ELEMENTS: Final = struct.Struct("@2P3q2if")
"""PenstockElements of elements.h."""
CALL: Final = struct.Struct("@qP")
"""PenstockCall of program.h."""
NORM: Final = struct.Struct("@5P2q4if")
"""PenstockNorm of norm.h."""
ACTIVATION: Final = struct.Struct("@2P2q2i")
"""PenstockActivation of activation.h."""
HEADS: Final = struct.Struct("@10P3q7if")
"""PenstockHeads of heads.h."""
SAMPLE: Final = struct.Struct("@7P3q")
"""PenstockSample of logits.h."""
LOGPROBS: Final = struct.Struct("@6P4q")
"""PenstockLogprobs of logits.h."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The library for this processor, or for the target that PENSTOCK_CPU_TARGET names; None where there is
    none, which is said in the log."""
    features = _features()
    fitting = [target for target in targets() if _NEEDED[target] <= features]
    if named := os.environ.get("PENSTOCK_CPU_TARGET"):
        fitting = [target for target in fitting if target == named]
        if not fitting:
            log.warning("PENSTOCK_CPU_TARGET: this processor does not run %r", named)
    else:
        fitting = [target for target in fitting if target not in _ASKED_FOR]
    built = [target for target in fitting if library(target).is_file()]
    if not built:
        log.warning(
            "no C++ kernels were built for this processor (%s): plain torch computes, which is slower",
            f"python {FOLDER}/build.py says why" if fitting else "they need AVX2 and FMA",
        )
        return None
    runtime = _openmp()
    if runtime is None:
        log.warning("torch has loaded no OpenMP runtime to share: plain torch computes, which is slower")
        return None
    try:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        native = ctypes.CDLL(str(library(built[-1])))
    except OSError as error:
        log.warning("the C++ kernels cannot be loaded (%s): plain torch computes, which is slower", error)
        return None
    log.info("C++ kernels for %s", built[-1])
    return native


def _features() -> frozenset[str]:
    """The processor's, as Linux names them, and its maker."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":")[::2] for line in lines)
    return frozenset(
        word for name, words in named if name.strip() in ("flags", "vendor_id") for word in words.split()
    )


def _openmp() -> str | None:
    """The file of the OpenMP runtime in this process."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = (line.split(maxsplit=5)[-1] for line in lines)
    names = ("libgomp", "libiomp5", "libomp")
    return next((path for path in paths if Path(path).name.startswith(names)), None)
