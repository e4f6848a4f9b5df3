"""Triton's interpreter where there is no GPU; a visible skip where there is no Triton.

Stands alone: on a machine with a GPU these tests run without the conftests above, whose packages it may lack.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.opset import OpSet, load_op_set
from tests.kernels.triton.interpreter import accept_runtime_bounds

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON and not torch.cuda.is_available():
    # Read when a kernel is defined, so before anything imports kernels.triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    accept_runtime_bounds()


class _WithoutTriton(pytest.Module):
    """A test module that is not even imported."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        pytest.skip("triton is not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if HAS_TRITON else _WithoutTriton.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    # Infinity is a value in kernels as on hardware: the interpreter's NumPy is not to warn of it.
    with torch.inference_mode(), np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="session")
def reference() -> OpSet:
    return load_op_set("reference")
