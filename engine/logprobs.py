"""Log-probabilities of sampled and of given tokens, from tensors to what crosses the engine's border."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from engine.request import TokenLogprobs
from kernels.logprob import TopLogprobs, top_logprobs
from kernels.opset import OpSet

LOWEST = -9999.0
"""Reported for a token whose probability is 0, as vLLM's server does: JSON has no infinity."""


def prompt_logprobs(ops: OpSet, logits: Tensor, targets: Tensor, num_top: int) -> list[TokenLogprobs]:
    """Of each target, given the logits before it, with the `num_top` most likely tokens.

    logits: [P, V] float32, raw; targets: [P] int64. Where logits are not finite, logprob is NaN.
    """
    if targets.shape[0] == 0:
        return []
    return token_logprobs(top_logprobs(ops, logits, targets, num_top), [num_top] * targets.shape[0])


def token_logprobs(found: TopLogprobs, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """One for each of the R rows, with its `num_top` most likely tokens, less those of probability 0."""
    rows = zip(
        found.chosen.tolist(),
        found.ranks.tolist(),
        found.top_ids.tolist(),
        found.top.tolist(),
        num_top,
        strict=True,
    )
    return [
        TokenLogprobs(
            logprob=LOWEST if logprob < LOWEST else logprob,
            rank=rank,
            top=[
                (token, value)
                for token, value in zip(ids[:wanted], top[:wanted], strict=True)
                if math.isfinite(value)
            ],
        )
        for logprob, rank, ids, top, wanted in rows
    ]
