"""Log-probabilities of chosen tokens, their ranks, and the most likely tokens, from raw logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check

if TYPE_CHECKING:
    from kernels.opset import OpSet


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """Of R rows, one chosen token and the K most likely ones. Among tokens of equal logits the lower id comes
    first, in ranks and in the list, so that a token of rank r ≤ K is the list's r-th."""

    chosen: Tensor
    """[R] float32: log softmax at the chosen tokens."""
    ranks: Tensor
    """[R] int64: 1 for the most likely."""
    top_ids: Tensor
    """[R, K] int64, most likely first."""
    top: Tensor
    """[R, K] float32."""


def top_logprobs(ops: OpSet, logits: Tensor, token_ids: Tensor, num_top: int) -> TopLogprobs:
    """logits: [R, V] float32, whose greatest of each row is finite; token_ids: [R] int64, the chosen ones.

    K is `num_top`, or V where that is less.
    """
    num_rows = logits.shape[0]
    check("logits", logits, (num_rows, None), torch.float32, logits.device)
    check("token_ids", token_ids, (num_rows,), torch.int64, logits.device)
    assert num_top >= 0, f"num_top is {num_top}"
    return ops.top_logprobs(logits, token_ids, min(num_top, logits.shape[1]))
