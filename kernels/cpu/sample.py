"""Sampling on a processor: filters as one bound per row, found in a short prefix of the sorted logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.sample import SamplingTensors

PREFIX = 128
"""Sorted logits that are looked at first: where they hold top_p of the mass, nothing else is sorted."""


def sample(logits: Tensor, uniforms: Tensor, params: SamplingTensors) -> Tensor:
    """See `kernels.sample.sample`. Sums run along a row by cumsum alone, whose order no batch changes."""
    logits = logits / params.temperature[:, None]
    best = logits.amax(1, keepdim=True)
    weights = torch.exp(logits - best)
    bound = _bound(logits, best, weights, params)
    if bound is not None:
        weights.masked_fill_(logits < bound[:, None], 0.0)
    cdf = weights.cumsum(1)
    total = cdf[:, -1]
    below_total = torch.nextafter(total, torch.zeros_like(total))  # u · total may round up to total
    target = torch.minimum(uniforms * total, below_total)
    return torch.searchsorted(cdf, target[:, None], right=True)[:, 0]


def _bound(logits: Tensor, best: Tensor, weights: Tensor, params: SamplingTensors) -> Tensor | None:
    """The least logit of each row that the filters keep, [R]; None where no row filters."""
    if not (params.any_min_p or params.any_top_k or params.any_top_p):
        return None
    bound = best[:, 0] + torch.log(params.min_p)  # log 0 is -inf: keeps all
    if not (params.any_top_k or params.any_top_p):
        return bound
    k = params.top_k.masked_fill(params.top_k >= logits.shape[1], 0)
    prefix = max(int(k.max()), PREFIX if params.any_top_p else 1)
    largest = logits.topk(min(prefix, logits.shape[1]), dim=1).values
    if params.any_top_k:
        kth = largest.gather(1, (k[:, None] - 1).clamp_(min=0))[:, 0]
        bound = torch.maximum(bound, kth.masked_fill(k == 0, -math.inf))
    if params.any_top_p:
        kept = weights.masked_fill(logits < bound[:, None], 0.0)
        all_kept = params.top_p >= 1
        needed = (params.top_p * kept.cumsum(1)[:, -1]).masked_fill_(all_kept, 0.0)
        top_p = _top_p_bound(logits, largest, bound, needed)
        bound = torch.maximum(bound, top_p.masked_fill_(all_kept, -math.inf))
    return bound


def _top_p_bound(logits: Tensor, largest: Tensor, bound: Tensor, needed: Tensor) -> Tensor:
    """The least logit, of those at least `bound`, whose more probable tokens weigh less than `needed`.

    largest: [R, P], the greatest logits in order. Returns [R].
    """
    weights = torch.exp(largest - largest[:, :1]).masked_fill_(largest < bound[:, None], 0.0)
    cumulative = weights.cumsum(1)
    last = ((cumulative - weights) < needed[:, None]).sum(1, keepdim=True).sub_(1)
    found = largest.gather(1, last.clamp_(min=0))[:, 0]
    short = (cumulative[:, -1] < needed).nonzero()[:, 0]
    if largest.shape[1] < logits.shape[1] and short.numel() > 0:
        ordered = logits[short].sort(dim=1, descending=True).values
        found[short] = _top_p_bound(logits[short], ordered, bound[short], needed[short])
    return found
