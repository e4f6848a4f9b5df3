"""Grammar masks on a processor: one look-up turns a byte of bits into eight numbers to add, 0 or -inf.

For 32 rows of 151,936 tokens this takes a third of what unpacking the bits and filling takes.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor

from kernels.mask import TokenMasks

if sys.byteorder != "little":
    raise ImportError("the cpu op set reads a mask's words byte by byte: it needs a little-endian processor")

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDED = np.where(_BITS == 0, -math.inf, 0.0).astype(np.float32)
"""[256, 8]: by byte, what each of its eight tokens' logits gets."""


def apply_bitmask(logits: Tensor, masks: TokenMasks) -> None:
    """See `kernels.mask.apply_bitmask`."""
    num_masks = masks.index.shape[0]
    added = np.take(_ADDED, masks.bits.numpy().view(np.uint8), axis=0).reshape(num_masks, -1)
    logits.index_add_(0, masks.index, torch.from_numpy(added[:, : logits.shape[1]]))
