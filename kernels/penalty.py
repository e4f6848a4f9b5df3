"""Penalties on tokens that a sequence has already seen, touching only those tokens' logits.

As vLLM has them, in this order: the repetition penalty r on every token of prompt and output (a positive
logit is divided by r, another multiplied by it), then the frequency penalty once for each time that the
output has the token, then the presence penalty where the output has it at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check, check_contiguous

if TYPE_CHECKING:
    from kernels.opset import OpSet


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """N different (row, token) pairs and the penalties of their rows."""

    index: Tensor
    """[N] int64: row · V + token, each pair once."""
    output_counts: Tensor
    """[N] float32: how often the row's output has the token; 0 where only the prompt has it."""
    repetition: Tensor
    """[N] float32, above 0; 1 leaves logits as they are."""
    frequency: Tensor
    """[N] float32."""
    presence: Tensor
    """[N] float32."""


def apply_penalties(ops: OpSet, logits: Tensor, seen: SeenTokens) -> None:
    """Changes the logits of seen tokens in place. logits: [R, V] float32, contiguous."""
    num_pairs = seen.index.shape[0]
    device = logits.device
    check("logits", logits, (None, None), torch.float32, device)
    check_contiguous("logits", logits)
    check("index", seen.index, (num_pairs,), torch.int64, device)
    for name in ("output_counts", "repetition", "frequency", "presence"):
        check(name, getattr(seen, name), (num_pairs,), torch.float32, device)
    ops.apply_penalties(logits, seen)
