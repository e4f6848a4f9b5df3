"""Operations recorded in a CUDA graph, as the engine runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.kernels.triton.device import DEVICE


def replayed(operation: Callable[[], Tensor]) -> Tensor:
    """What an operation gives when it is recorded and replayed; without a GPU, what it gives.

    Recording fails where the operation waits for the device or copies from it. The operation must have run
    before, so that its kernels are loaded.
    """
    if DEVICE != "cuda":
        return operation()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operation()
    out.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    return out.clone()
