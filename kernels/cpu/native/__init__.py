"""C++ kernels behind a plain C interface: found, loaded, and called with pointers.

The library for the best target that this processor can run is loaded; it brings no OpenMP runtime of its own
but shares the one that torch has loaded, and with it torch's threads: two runtimes would fight for the cores.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from kernels.cpu.native.build import FOLDER, is_current, library, targets

log = logging.getLogger(__name__)

_AVX2: Final = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"})
_AVX512: Final = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
_NEEDED: Final[dict[str, frozenset[str]]] = {
    "plain": frozenset(),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_vnni": _AVX512 | {"avx512_vnni"},
    # AMD's processors add products of bfloat16 at twice the rate of float32, Intel's at half of it.
    "avx512_bf16": _AVX512 | {"avx512_vnni", "avx512_bf16", "AuthenticAMD"},
    "avx512_fp16": _AVX512 | {"avx512_vnni", "avx512_fp16"},
}
_ASKED_FOR: Final = ("avx512_fp16",)
"""Used only where PENSTOCK_CPU_TARGET names it: no processor that multiplies float16 has run it yet."""
TYPES: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
"""As attention.h names them."""


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
    built = [target for target in fitting if is_current(target)]
    if not built:
        log.warning(
            "no current C++ kernels for this processor (%s): plain torch computes, which is slower",
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
    """The file of the OpenMP runtime that torch has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = (line.split(maxsplit=5)[-1] for line in lines)
    names = ("libgomp", "libiomp5", "libomp")
    found = dict.fromkeys(path for path in paths if Path(path).name.startswith(names))
    # Other packages bring one as well; torch's is in its own folder, unless it took the system's.
    beside = Path(torch.__file__).parent.parent
    return min(found, key=lambda path: beside not in Path(path).parents, default=None)
