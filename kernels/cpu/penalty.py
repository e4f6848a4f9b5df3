"""Penalties on a processor: gather, change, put back; pairs are different, so nothing is written twice."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.penalty import SeenTokens


def apply_penalties(logits: Tensor, seen: SeenTokens) -> None:
    """See `kernels.penalty.apply_penalties`."""
    flat = logits.view(-1)
    values = flat[seen.index]
    values = torch.where(values > 0, values / seen.repetition, values * seen.repetition)
    values -= seen.frequency * seen.output_counts
    values -= seen.presence * (seen.output_counts > 0)
    flat[seen.index] = values
