"""Every kernel compiles ahead of time for two generations of GPU, and fits their multiprocessors."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("cases_*.py"))

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may have; CUDA C++ Programming Guide, technical specifications."""
REGISTER_LIMIT = 255
SPILL_LIMIT = 0
"""Bytes; a case module may allow its kernels more, by name: `SPILL_LIMITS`."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("arch", SHARED_LIMITS)
@pytest.mark.parametrize("module", MODULES)
def test_compile(module: str, arch: int, tmp_path: Path) -> None:
    name = f"{__package__}.{module}"
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-m", f"{__package__}.compiling", name, str(arch)],
        cwd=FOLDER.parents[2],
        env=env | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    errors = [f"{line['thunk']}: {line['error']}" for line in lines if "error" in line]
    assert not errors, "\n".join(errors)
    assert process.returncode == 0, process.stderr
    assert lines, "nothing was compiled"
    spill_limits = getattr(importlib.import_module(name), "SPILL_LIMITS", {})
    for line in lines:
        assert line["shared"] <= SHARED_LIMITS[arch], line
        assert line["registers"] <= REGISTER_LIMIT, line
        assert line["spilled"] <= spill_limits.get(line["kernel"], SPILL_LIMIT), line
