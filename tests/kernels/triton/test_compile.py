"""Some kernels of every module compile ahead of time for a GPU; `make compile-kernels` does all, for two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.triton.compiling import MODULES, check_compiled


@pytest.mark.timeout(600)
def test_some_of_every_module_compile_and_fit(tmp_path: Path) -> None:
    check_compiled(MODULES, 90, 12, tmp_path)
