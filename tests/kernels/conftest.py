"""Op sets, and one thread: tiny tensors gain nothing from more, and machines that run tests are shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.opset import OpSet, load_op_set


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cpu() -> OpSet:
    return load_op_set("cpu")


@pytest.fixture(scope="session")
def reference() -> OpSet:
    return load_op_set("reference")
