"""What sampling is tested and compiled with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kernels.sample import SamplingTensors
from kernels.triton.sample import sample
from tests.kernels.triton.device import DEVICE

VOCAB_SIZES = [1, 63, 1000, 4097]
ROWS = 9
if DEVICE == "cuda":
    VOCAB_SIZES += [20_011, 151_936]
    ROWS = 256

BELOW_ONE = 1 - 2**-24

FILTERS = [
    (k, p, m)
    for k, p, m in itertools.product((0, 1, 7, 40), (1.0, 0.02, 0.6, 0.97), (0.0, 1e-4, 0.3, 1.0))
    if (k > 0) + (p < 1) + (m > 0) <= 2
]
"""Pairwise: top_k, top_p, min_p."""


def params_of(rows: list[tuple[int, float, float]], temperature: list[float]) -> SamplingTensors:
    """Rows of (top_k, top_p, min_p), and temperatures taken in turn."""
    top_k, top_p, min_p = (list(column) for column in zip(*rows, strict=True))
    return SamplingTensors(
        temperature=torch.tensor(
            [temperature[i % len(temperature)] for i in range(len(rows))], device=DEVICE
        ),
        top_k=torch.tensor(top_k, device=DEVICE),
        top_p=torch.tensor(top_p, device=DEVICE),
        min_p=torch.tensor(min_p, device=DEVICE),
        any_top_k=any(k > 0 for k in top_k),
        any_top_p=any(p < 1 for p in top_p),
        any_min_p=any(m > 0 for m in min_p),
    )


def some_params(num_rows: int, seed: int) -> SamplingTensors:
    """Rows of FILTERS by lot; those of a large seed's batch and a small one's differ."""
    picks = torch.randperm(len(FILTERS), generator=torch.Generator().manual_seed(seed)).tolist()
    return params_of([FILTERS[picks[i % len(picks)]] for i in range(num_rows)], [1.0, 0.3, 2.5, 0.7])


def logits_of(num_rows: int, vocab_size: int, seed: int) -> Tensor:
    """In turn flat, plain, and sharp rows; every third of few different logits, every fifth half masked,
    every seventh but one token masked."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.1, 1.0, 4.0, 12.0])[torch.arange(num_rows) % 4, None]
    logits = torch.randn(num_rows, vocab_size, generator=generator) * spread
    logits[1::3] = (logits[1::3] * 4).round() / 4
    if vocab_size > 2:
        logits[2::5, : vocab_size // 2] = -torch.inf
        last = logits[6::7, vocab_size - 2].clone()
        logits[6::7] = -torch.inf
        logits[6::7, vocab_size - 2] = last
    return logits.to(DEVICE)


def uniforms_of(num_rows: int, seed: int) -> Tensor:
    """By lot, and both ends of the interval among them."""
    uniforms = torch.rand(num_rows, generator=torch.Generator().manual_seed(seed))
    uniforms[3::8], uniforms[4::8] = 0.0, BELOW_ONE
    return uniforms.to(DEVICE)


def part_of(params: SamplingTensors, rows: slice) -> SamplingTensors:
    return replace(
        params,
        temperature=params.temperature[rows],
        top_k=params.top_k[rows],
        top_p=params.top_p[rows],
        min_p=params.min_p[rows],
    )


def _compiled(vocab_size: int, filtered: bool) -> None:
    ones, zeros = torch.ones(3), torch.zeros(3)
    params = SamplingTensors(ones, zeros.long(), ones, zeros, filtered, filtered, filtered)
    sample(torch.zeros(3, vocab_size), zeros, params)


COMPILED: list[tuple[str, Callable[[], None]]] = [
    (f"sample-{vocab_size}-{'filtered' if filtered else 'plain'}", partial(_compiled, vocab_size, filtered))
    for vocab_size, filtered in ((151_936, False), (151_936, True), (262_143, True), (63, True))
]

SPILL_LIMITS = {"_bounds_kernel": 24}
"""Bytes: on sm_80, where the vocabulary's size is odd and loads are of single words."""
