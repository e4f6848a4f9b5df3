"""Op sets, and one thread: tiny tensors gain nothing from more, and machines that run tests are shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.cpu import make_op_set
from kernels.opset import OpSet, load_op_set


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


IN_CPP = (
    "test_activation",
    "test_argmax",
    "test_attention",
    "test_attention_features",
    "test_cache_in_8_bits",
    "test_elements",
    "test_exact",
    "test_logprob",
    "test_mask",
    "test_moe",
    "test_ops",
    "test_philox",
    "test_qkv",
    "test_sample",
)
"""What is computed in C++ where it was compiled, and by torch elsewhere: these tests run with either."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cpu" in metafunc.fixturenames and metafunc.module.__name__.rsplit(".", 1)[-1] in IN_CPP:
        metafunc.parametrize("cpu", ["native", "torch"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def cpu(request: pytest.FixtureRequest) -> OpSet:
    """With the C++ kernels, or without."""
    if getattr(request, "param", "native") == "torch":
        return make_op_set(None)
    ops = load_op_set("cpu")
    assert not ops.reads_past_context, "the C++ kernels are not built: make test builds them"
    return ops


@pytest.fixture(scope="session")
def torch_cpu() -> OpSet:
    """Without the C++ kernels."""
    return make_op_set(None)


@pytest.fixture(scope="session")
def reference() -> OpSet:
    return load_op_set("reference")
