"""The greatest on a processor: numpy's argmax is ten times as fast as torch's max with indices."""

from __future__ import annotations

import torch
from torch import Tensor


def argmax(logits: Tensor) -> Tensor:
    """See `kernels.argmax.argmax`."""
    return torch.from_numpy(logits.numpy().argmax(1))
