"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011: a draw is a function of key and counter and of nothing else, so neither batch nor history shifts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from kernels.checks import check

if TYPE_CHECKING:
    from kernels.opset import OpSet

ROUNDS: Final = 10
MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)
"""Added to the key's two words after every round."""
MASK: Final = 0xFFFFFFFF


def philox(ops: OpSet, key: Tensor, counter: Tensor) -> Tensor:
    """Ten rounds. key: [R, 2], counter: [R, 4], returns [R, 4]; all int64 that hold words of 32 bits."""
    num_rows = key.shape[0]
    check("key", key, (num_rows, 2), torch.int64, key.device)
    check("counter", counter, (num_rows, 4), torch.int64, key.device)
    return ops.philox(key, counter)


def uniform(ops: OpSet, seeds: Tensor, output_indices: Tensor, samples: Tensor) -> Tensor:
    """One draw per row, float32 in [0, 1): 24 bits of the first word.

    seeds: [R] int64, the bits of an unsigned 64-bit seed, which are the key. The counter is
    (output index, sample, 0, 0): output_indices and samples are [R] int64.
    """
    num_rows = seeds.shape[0]
    check("seeds", seeds, (num_rows,), torch.int64, seeds.device)
    check("output_indices", output_indices, (num_rows,), torch.int64, seeds.device)
    check("samples", samples, (num_rows,), torch.int64, seeds.device)
    return ops.uniform(seeds, output_indices, samples)


def uniform_of_words(
    philox: Callable[[Tensor, Tensor], Tensor], seeds: Tensor, output_indices: Tensor, samples: Tensor
) -> Tensor:
    """`uniform` by an op set's `philox`."""
    num_rows = seeds.shape[0]
    key = torch.stack((seeds & MASK, (seeds >> 32) & MASK), dim=1)
    counter = seeds.new_zeros((num_rows, 4))
    counter[:, 0] = output_indices
    counter[:, 1] = samples
    return (philox(key, counter)[:, 0] >> 8).to(torch.float32) * 2.0**-24
