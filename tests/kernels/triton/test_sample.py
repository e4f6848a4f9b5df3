"""Triton's sampling: the exact kept set, the reference's tokens, and rows that neighbours do not change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.opset import OpSet
from kernels.sample import SamplingTensors
from kernels.triton.sample import sample
from tests.chi_square import assert_follows
from tests.kernels.triton.cases_sample import (
    BELOW_ONE,
    ROWS,
    VOCAB_SIZES,
    logits_of,
    params_of,
    part_of,
    some_params,
    uniforms_of,
)
from tests.kernels.triton.device import DEVICE

COMB = 24
"""Uniforms: closer to each other than a kept token is wide."""
TOLERANCE = 1e-6
"""Of a row's mass: by this much a weight's and a sum's rounding may move a token's boundary."""


def kept_of(logits: Tensor, params: SamplingTensors, row: int) -> tuple[Tensor, Tensor]:
    """The reference's scaled logits and what it keeps, of one row; by itself: no reference gives it away."""
    scaled = (logits[row] - logits[row].max()) / params.temperature[row]
    kept = scaled >= params.min_p[row].log()
    top_k = int(params.top_k[row])
    if 0 < top_k < scaled.shape[0]:
        kept &= scaled >= scaled.sort(descending=True).values[top_k - 1]
    if params.top_p[row] < 1:
        ordered, order = torch.where(kept, scaled.exp().double(), 0.0).sort(descending=True)
        mass = ordered.cumsum(0)
        last = int((mass < params.top_p[row].double() * mass[-1]).sum())
        kept &= scaled >= scaled[order[last]]
    return scaled, kept


def assert_draws(logits: Tensor, uniforms: Tensor, params: SamplingTensors, drawn: Tensor) -> int:
    """Every token is the reference's, or the uniform is at its boundary. Returns how many are not the
    same."""
    different = 0
    for row, token in enumerate(drawn.tolist()):
        scaled, kept = kept_of(logits, params, row)
        assert kept[token], f"row {row}: token {token} is not kept"
        assert scaled[token] > -math.inf, f"row {row}: token {token} is masked"
        cdf = torch.where(kept, scaled.exp().double(), 0.0).cumsum(0)
        cdf /= cdf[-1].clone()
        uniform = uniforms[row].item()
        before = cdf[token - 1].item() if token > 0 else 0.0
        assert before - TOLERANCE <= uniform <= cdf[token].item() + TOLERANCE, f"row {row}: token {token}"
        # At the ends of the interval the reference finds tokens of a weight below any boundary's tolerance.
        different += 0 < uniform < BELOW_ONE and token != int((cdf <= uniform).sum())
    return different


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_draws_are_those_of_the_reference(vocab_size: int, reference: OpSet) -> None:
    num_rows, different = 0, 0
    for seed in range(2):
        logits, uniforms = logits_of(ROWS, vocab_size, seed), uniforms_of(ROWS, seed)
        before = logits.clone()
        for params in (some_params(ROWS, seed), params_of([(0, 1.0, 0.0)] * ROWS, [1.0, 0.5, 2.0])):
            drawn = sample(logits, uniforms, params)
            different += assert_draws(logits, uniforms, params, drawn)
            assert torch.equal(logits, before), "sampling must leave its input alone"
            num_rows += ROWS
        inner = (uniforms > 0) & (uniforms < BELOW_ONE)
        same = drawn == reference.sample(logits, uniforms, params)
        assert (inner & ~same).sum() <= 1 + ROWS // 50
    assert different <= 1 + num_rows // 50, "more draws at boundaries than chance puts there"


WIDE = [(0, 0.9, 0.0), (9000, 1.0, 0.0), (9000, 0.8, 0.0), (0, 1.0, 1e-5), (0, 0.99, 0.2), (9000, 0.95, 0.3)]


@pytest.mark.parametrize("kind", ["different", "few", "equal"])
def test_wide_filters_are_found_over_the_whole_row(kind: str) -> None:
    """More tokens are kept than one program holds."""
    logits = logits_of(1, 20_011, 7).expand(len(WIDE), -1) * 10
    logits = {"different": logits, "few": (logits * 8).round() / 8, "equal": logits * 0.0}[kind].contiguous()
    params = params_of(WIDE, [1.0])
    for uniform in (0.0, 0.43, BELOW_ONE) if DEVICE == "cuda" else (0.43,):
        uniforms = torch.full((len(WIDE),), uniform, device=DEVICE)
        drawn = sample(logits, uniforms, params)
        assert assert_draws(logits, uniforms, params, drawn) <= 1


@pytest.mark.parametrize("filters", [(3, 1.0, 0.0), (0, 0.61, 0.0), (0, 1.0, 0.45), (5, 0.7, 0.0)])
def test_the_kept_set_is_exact(filters: tuple[int, float, float]) -> None:
    """A fine comb of uniforms draws every token that is kept, and no other."""
    probabilities = torch.tensor([0.02, 0.30, 0.05, 0.25, 0.10, 0.03, 0.20, 0.05], device=DEVICE)
    logits = probabilities.log().expand(COMB, -1)  # rows of stride 0
    uniforms = (torch.arange(COMB, device=DEVICE) + 0.5) / COMB
    params = params_of([filters] * COMB, [1.0])
    _, kept = kept_of(logits, params, 0)
    drawn = sample(logits, uniforms, params)
    assert set(drawn.tolist()) == set(kept.nonzero()[:, 0].tolist())
    assert (drawn[1:] >= drawn[:-1]).all(), "the inverse CDF goes by the vocabulary's order"


def test_draws_follow_the_distribution() -> None:
    probabilities = [0.02, 0.30, 0.05, 0.25, 0.10, 0.03, 0.20, 0.05]
    rows = 400 if DEVICE == "cuda" else 260
    logits = torch.full((rows, 2100), -torch.inf, device=DEVICE)
    places = torch.tensor([0, 5, 63, 64, 1000, 2047, 2048, 2099], device=DEVICE)  # in both chunks
    logits[:, places] = torch.tensor(probabilities, device=DEVICE).log()
    uniforms = torch.rand(rows, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    drawn = sample(logits, uniforms, params_of([(0, 1.0, 0.0)] * rows, [1.0]))
    assert_follows(torch.searchsorted(places, drawn).tolist(), probabilities)
    assert torch.isin(drawn, places).all()


@pytest.mark.parametrize("filters", [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1)])
def test_rows_without_a_finite_greatest_get_some_token(filters: tuple[int, float, float]) -> None:
    vocab_size = 4500
    logits = logits_of(6, vocab_size, 2)
    logits[0] = torch.nan
    logits[1] = -torch.inf
    logits[2, 77] = torch.inf
    logits[3, 4400] = torch.nan
    logits[4, 3:] = torch.inf
    uniforms = torch.tensor([0.0, 0.5, BELOW_ONE, 0.3, 0.7, 0.6], device=DEVICE)
    params = params_of([filters] * 6, [1.0])
    drawn = sample(logits, uniforms, params)
    assert ((drawn >= 0) & (drawn < vocab_size)).all()
    alone = sample(logits[5:], uniforms[5:], part_of(params, slice(5, 6)))
    assert drawn[5] == alone[0], "neighbours changed"


def test_a_row_is_the_same_in_any_batch() -> None:
    logits, uniforms, params = logits_of(8, 5000, 4), uniforms_of(8, 4), some_params(8, 4)
    whole = sample(logits, uniforms, params)
    for rows in (slice(0, 1), slice(2, 3), slice(3, 8)):
        part = sample(logits[rows], uniforms[rows], part_of(params, rows))
        assert torch.equal(part, whole[rows]), rows


EDGES = [
    # The bound by peaks asks for a bit more than top_p, never for less: the uniform is in the last kept.
    ("the least kept by top_p", 3000, {5: 0.93, 700: 0.04, 1500: 0.03}, (0, 0.97, 0.0), 0.965, 700),
    # Of a group's two, one is above the third peak: four are held, and the fourth is not kept.
    ("one more than top_k", 3000, {5: 0.5, 6: 0.2, 700: 0.2, 1500: 0.1}, (3, 1.0, 0.0), 0.95, 700),
    # top_p is a share of the row, not of the 71 % that are held.
    ("mass that is not held", 20_000, {5: 0.4, 700: 0.2, 1500: 0.11}, (0, 0.7, 0.0), 0.98, 1500),
    # All are equal, so all are kept.
    ("more than are held", 6000, {}, (0, 1.0, 0.5), 0.9, 5400),
]
"""Name, vocabulary, probabilities (others share the rest), filters, uniform, the token that it draws."""


@pytest.mark.parametrize(
    ("vocab_size", "heavy", "filters", "uniform", "token"), [e[1:] for e in EDGES], ids=[e[0] for e in EDGES]
)
def test_edges_of_what_is_held(
    vocab_size: int, heavy: dict[int, float], filters: tuple[int, float, float], uniform: float, token: int
) -> None:
    rest = max(1 - sum(heavy.values()), 1e-6) / (vocab_size - len(heavy))
    logits = torch.full((1, vocab_size), math.log(rest), device=DEVICE)
    for heavy_token, probability in heavy.items():
        logits[0, heavy_token] = math.log(probability)
    uniforms, params = torch.tensor([uniform], device=DEVICE), params_of([filters], [1.0])
    drawn = sample(logits, uniforms, params)
    assert_draws(logits, uniforms, params, drawn)
    assert abs(drawn.item() - token) <= (0 if heavy else 1)  # where all are equal, the boundary is rounded


def test_no_rows() -> None:
    empty = torch.empty(0, device=DEVICE)
    params = SamplingTensors(empty, empty.long(), empty, empty, True, True, True)
    assert sample(torch.empty(0, 100, device=DEVICE), empty, params).shape == (0,)
