"""The greatest of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check

if TYPE_CHECKING:
    from kernels.opset import OpSet


def argmax(ops: OpSet, logits: Tensor) -> Tensor:
    """The first of the greatest of each row; where there is a NaN, the first NaN.

    logits: [R, V] float32. Returns [R] int64.
    """
    check("logits", logits, (None, None), torch.float32, logits.device)
    return ops.argmax(logits)
