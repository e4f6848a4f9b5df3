"""Every kernel compiles ahead of time for two generations of GPU, and fits their multiprocessors.

Minutes of processor time, so not among what `make test` collects: `make compile-kernels` and CI run it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.triton.compiling import MODULES, SHARED_LIMITS, check_compiled


@pytest.mark.timeout(900)
@pytest.mark.parametrize("arch", SHARED_LIMITS)
@pytest.mark.parametrize("module", MODULES)
def test_compile(module: str, arch: int, tmp_path: Path) -> None:
    check_compiled([module], arch, 1, tmp_path)
