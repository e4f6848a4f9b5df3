"""Sums along the rows of a matrix in an order that no batch changes, by chunks of a fixed width.

A chunk's sum is one output of `Tensor.sum` over a contiguous last dimension, which torch computes on its own
whatever stands beside it; tests hold it to that for one to three threads. cumsum then adds chunks in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64


def pad_width(width: int) -> int:
    """The next multiple of CHUNK."""
    return -(-width // CHUNK) * CHUNK


def chunk_sums(values: Tensor) -> Tensor:
    """values: [R, W] float32. Returns sums of CHUNK values each, [R, ⌈W / CHUNK⌉] float64."""
    num_rows, width = values.shape
    padded = pad_width(width)
    if padded > width:
        values = torch.nn.functional.pad(values, (0, padded - width))
    return values.view(num_rows, -1, CHUNK).sum(2).double()
