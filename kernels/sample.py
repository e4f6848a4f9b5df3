"""Sampling from logits by one uniform per row.

In this order, as in vLLM: temperature, min_p, top_k, top_p (over what top_k left). Every filter is a bound on
the logit, so tokens of equal logits stay or go together and no order among them matters:
min_p keeps tokens at least min_p times as probable as the best; top_k those not below the k-th largest; top_p
those whose more probable tokens together have less than top_p. Then the inverse CDF over the tokens that are
left, in the order of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check

if TYPE_CHECKING:
    from kernels.opset import OpSet


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """Parameters of R rows; the flags say whether any row uses a filter at all."""

    temperature: Tensor
    """[R] float32, above 0."""
    top_k: Tensor
    """[R] int64; 0 keeps all."""
    top_p: Tensor
    """[R] float32; 1 keeps all."""
    min_p: Tensor
    """[R] float32; 0 keeps all."""
    any_top_k: bool
    any_top_p: bool
    any_min_p: bool


def sample(ops: OpSet, logits: Tensor, uniforms: Tensor, params: SamplingTensors) -> Tensor:
    """One token id per row. logits: [R, V] float32; uniforms: [R] float32 in [0, 1). Returns [R] int64.

    A row whose greatest logit is not finite gets some token id of the vocabulary: whoever samples from a
    device does not wait to hear that there is one.
    """
    num_rows = logits.shape[0]
    device = logits.device
    check("logits", logits, (num_rows, None), torch.float32, device)
    check("uniforms", uniforms, (num_rows,), torch.float32, device)
    check("temperature", params.temperature, (num_rows,), torch.float32, device)
    check("top_k", params.top_k, (num_rows,), torch.int64, device)
    check("top_p", params.top_p, (num_rows,), torch.float32, device)
    check("min_p", params.min_p, (num_rows,), torch.float32, device)
    return ops.sample(logits, uniforms, params)
