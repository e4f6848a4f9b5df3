"""A grammar's mask on logits: tokens whose bit is not set cannot be sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check, check_contiguous

if TYPE_CHECKING:
    from kernels.opset import OpSet

BITS_PER_WORD = 32


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """What some rows of a step may sample, as llguidance writes it: token t is bit t % 32 of word t // 32,
    set where the token may come."""

    index: Tensor
    """[M] int64: positions among the step's sampled rows, each at most once."""
    bits: Tensor
    """[M, ⌈V / 32⌉] int32; bits past the vocabulary mean nothing."""


def apply_bitmask(ops: OpSet, logits: Tensor, masks: TokenMasks) -> None:
    """Sets the logits of masked tokens to -inf, in place. logits: [R, V] float32, contiguous."""
    num_masks = masks.index.shape[0]
    num_words = -(-logits.shape[1] // BITS_PER_WORD)
    check("logits", logits, (None, None), torch.float32, logits.device)
    check_contiguous("logits", logits)
    check("index", masks.index, (num_masks,), torch.int64, logits.device)
    check("bits", masks.bits, (num_masks, num_words), torch.int32, logits.device)
    ops.apply_bitmask(logits, masks)
