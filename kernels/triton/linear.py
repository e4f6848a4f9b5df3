"""See `kernels.linear`: dense products are cuBLAS's, which no kernel of ours beats at 16 bits.

Nothing is copied at packing. A quantized weight would be another `LinearWeight` of this op set: only the two
functions here look inside one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear import LinearWeight


def pack_linear(weight: Tensor, bias: Tensor | None) -> LinearWeight:
    """See `kernels.linear.pack_linear`."""
    out_features, in_features = weight.shape
    return LinearWeight(weight, bias, in_features, out_features, weight.dtype, weight.device)


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """See `kernels.linear.linear`."""
    return torch.nn.functional.linear(x, weight.data, weight.bias)
