"""Sampling on a processor.

Rows go one of four ways, each chosen by the row alone, so that what others ask for costs nothing:
- no filter: the mass of chunks of the vocabulary, then a look into the chunk that holds the draw;
- filters on a small vocabulary: a sort, which gives the bounds, then the same draw;
- filters on a large one: only its PREFIX most likely tokens, in vocabulary order; or, where filters may leave
  others too, `kernels.cpu.wide`, row by row.
Weights are float32; masses are added in float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.row_sum import CHUNK, chunk_sums, pad_width
from kernels.cpu.wide import wide_weights
from kernels.sample import SamplingTensors

PREFIX = 160
"""Sorted logits that are looked at first."""
SORTED_WHOLE = 2048
"""Vocabularies up to this are small: numpy sorts one in less time than torch finds its PREFIX."""


def sample(logits: Tensor, uniforms: Tensor, params: SamplingTensors) -> Tensor:
    """See `kernels.sample.sample`."""
    # From the greatest down: quotients of large logits may overflow, negative differences only sink.
    best = logits.amax(1, keepdim=True)
    scaled = (logits - best) / params.temperature[:, None]
    if not bool(best.isfinite().all()):
        scaled.masked_fill_(scaled.isnan(), 0.0)  # such a row's token means nothing, but must be one
    if not (params.any_min_p or params.any_top_k or params.any_top_p):
        return _sample_unfiltered(scaled, uniforms)
    k = params.top_k.masked_fill(params.top_k >= logits.shape[1], 0)
    filtered = (k > 0) | (params.top_p < 1) | (params.min_p > 0)
    sample_filtered = _sample_sorted if logits.shape[1] <= SORTED_WHOLE else _sample_filtered
    if bool(filtered.all()):
        return sample_filtered(scaled, uniforms, k, params.top_p, params.min_p)
    tokens = torch.empty(logits.shape[0], dtype=torch.int64)
    free, bound = (~filtered).nonzero()[:, 0], filtered.nonzero()[:, 0]
    tokens[free] = _sample_unfiltered(scaled.index_select(0, free), uniforms[free])
    if bound.numel() > 0:
        tokens[bound] = sample_filtered(
            scaled.index_select(0, bound), uniforms[bound], k[bound], params.top_p[bound], params.min_p[bound]
        )
    return tokens


def _sample_unfiltered(scaled: Tensor, uniforms: Tensor) -> Tensor:
    """The inverse CDF over whole rows. Overwrites `scaled`."""
    return _draw(scaled.sub_(scaled.amax(1, keepdim=True)).exp_(), uniforms)


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The inverse CDF of weights [R, V] in vocabulary order: first the chunk, then the token in it."""
    num_rows, vocab_size = weights.shape
    if pad_width(vocab_size) > vocab_size:
        weights = torch.nn.functional.pad(weights, (0, pad_width(vocab_size) - vocab_size))
    cdf = chunk_sums(weights).cumsum(1)
    target = uniforms.double()[:, None] * cdf[:, -1:]
    chunk = torch.searchsorted(cdf, target, right=True)
    before = torch.where(chunk > 0, cdf.gather(1, (chunk - 1).clamp_(min=0)), 0.0)
    within = weights.view(num_rows, -1, CHUNK)[torch.arange(num_rows), chunk[:, 0]].double().cumsum(1)
    return chunk[:, 0] * CHUNK + _first_above(within, target - before)


def _sample_wide(scaled: Tensor, uniforms: Tensor, k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    weights = torch.empty_like(scaled)
    filters = zip(k.tolist(), top_p.tolist(), min_p.tolist(), strict=True)
    for row, of_row, out in zip(scaled.numpy(), filters, weights.numpy(), strict=True):
        wide_weights(row, of_row, out)
    return _draw(weights, uniforms)


def _first_above(cdf: Tensor, target: Tensor) -> Tensor:
    """The first index whose cumulative mass is above the target, or else the last that has mass. [R]."""
    total = cdf[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))  # differences may round up to the total
    return torch.searchsorted(cdf, torch.minimum(target, below_total), right=True)[:, 0]


def _sample_sorted(scaled: Tensor, uniforms: Tensor, k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Filters on a small vocabulary."""
    top = torch.from_numpy(np.sort(scaled.numpy(), axis=1)[:, ::-1].copy())
    bound = _least_kept(top, k, min_p)
    if bool((top_p < 1).any()):
        mass = _kept_mass(top, bound)
        bound = torch.maximum(bound, _top_p_bound(top, mass, mass[:, -1], top_p))
    weights = torch.exp(scaled - top[:, :1]).masked_fill_(scaled < bound[:, None], 0.0)
    return _draw(weights, uniforms)


def _sample_filtered(scaled: Tensor, uniforms: Tensor, k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Filters on a large vocabulary."""
    top, ids = scaled.topk(PREFIX, dim=1)
    bound = _least_kept(top, k, min_p)
    # A bound that equals the prefix's last logit may have equals outside.
    inside = bound > top[:, -1]
    if bool((top_p < 1).any()):
        plain = (top_p < 1) & (k == 0) & (min_p == 0)
        mass = _kept_mass(top, bound)
        bound = torch.maximum(bound, _top_p_bound(top, mass, _total(scaled, top, mass, plain), top_p))
        inside |= plain & (bound > top[:, -1])
    ids, order = ids.sort(dim=1)
    cdf = (
        torch.exp(top - top[:, :1])
        .masked_fill_(top < bound[:, None], 0.0)
        .gather(1, order)
        .double()
        .cumsum(1)
    )
    place = _first_above(cdf, uniforms.double()[:, None] * cdf[:, -1:])
    tokens = ids.gather(1, place[:, None])[:, 0]
    if not bool(inside.all()):
        wide = (~inside).nonzero()[:, 0]
        tokens[wide] = _sample_wide(
            scaled.index_select(0, wide), uniforms[wide], k[wide], top_p[wide], min_p[wide]
        )
    return tokens


def _least_kept(top: Tensor, k: Tensor, min_p: Tensor) -> Tensor:
    """The least logit that min_p and top_k keep, [R]; a k beyond the prefix is passed over. top: [R, P]."""
    bound = top[:, 0] + torch.log(min_p)  # log 0 is -inf: keeps all
    prefix = top.shape[1]
    kth = top.gather(1, (k[:, None] - 1).clamp_(0, prefix - 1))[:, 0]
    return torch.maximum(bound, kth.masked_fill_((k == 0) | (k > prefix), -math.inf))


def _kept_mass(top: Tensor, bound: Tensor) -> Tensor:
    """Cumulative weights of the prefix's tokens that are not below the bound, [R, P] float64."""
    return torch.exp(top - top[:, :1]).masked_fill_(top < bound[:, None], 0.0).double().cumsum(1)


def _total(scaled: Tensor, top: Tensor, mass: Tensor, plain: Tensor) -> Tensor:
    """What all kept tokens weigh, [R] float64: the vocabulary in `plain` rows, else what the prefix holds."""
    index = plain.nonzero()[:, 0]
    if index.numel() == 0:
        return mass[:, -1]
    whole = scaled if index.numel() == scaled.shape[0] else scaled.index_select(0, index)
    of_plain = chunk_sums(torch.sub(whole, top[index, :1]).exp_()).cumsum(1)[:, -1]
    return mass[:, -1].index_copy(0, index, of_plain)


def _top_p_bound(top: Tensor, mass: Tensor, total: Tensor, top_p: Tensor) -> Tensor:
    """The least logit whose more probable tokens weigh less than top_p of what is kept, [R]; -inf where top_p
    is off. Where the prefix does not reach that far, its last logit."""
    last = torch.searchsorted(mass, (top_p.double() * total)[:, None]).clamp_(max=top.shape[1] - 1)
    return top.gather(1, last)[:, 0].masked_fill_(top_p >= 1, -math.inf)
