"""Philox in numpy: at 64 rows a torch operation is mostly overhead, and there are fifty of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.philox import MASK, MULTIPLIERS, ROUNDS, WEYL, uniform_of_words

_MULTIPLIERS = np.array(MULTIPLIERS, dtype=np.uint64)[:, None]
_KEY_STEPS = (np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array(WEYL, dtype=np.uint64))[:, :, None]
_MASK = np.uint64(MASK)
_SHIFT = np.uint64(32)


def philox(key: Tensor, counter: Tensor) -> Tensor:
    """See `kernels.philox.philox`. Words 0 and 2 are multiplied, 1 and 3 only mixed in: two rows each."""
    keys = (key.numpy().astype(np.uint64).T[None] + _KEY_STEPS) & _MASK  # [rounds, 2, R]
    words = counter.numpy().astype(np.uint64).T  # [4, R]
    multiplied, mixed = words[0::2], words[1::2]
    for round_key in keys:
        product = multiplied * _MULTIPLIERS
        multiplied = (product >> _SHIFT)[::-1] ^ mixed ^ round_key
        mixed = (product & _MASK)[::-1]
    out = np.empty((key.shape[0], 4), dtype=np.int64)
    out[:, 0::2] = multiplied.T
    out[:, 1::2] = mixed.T
    return torch.from_numpy(out)


def uniform(seeds: Tensor, output_indices: Tensor, samples: Tensor) -> Tensor:
    """See `kernels.philox.uniform`."""
    return uniform_of_words(philox, seeds, output_indices, samples)
