"""Triton's mixture of experts against a loop over experts in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.triton.moe import moe, pack_experts, route
from kernels.triton.moe_product import rows_of
from kernels.triton.moe_tiles import sort_into_tiles
from tests.kernels.triton.cases_moe import CASES, ROUTES, Inputs, Size, inputs, normal
from tests.kernels.triton.closeness import assert_close
from tests.kernels.triton.device import DEVICE, DTYPES
from tests.kernels.triton.graph import replayed

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def exact(case: Inputs) -> Tensor:
    """In float64 all the way, expert by expert."""
    out = torch.zeros(case.x.shape, dtype=torch.float64, device=case.x.device)
    for expert in case.ids.unique().tolist():
        rows, choices = (case.ids == expert).nonzero(as_tuple=True)
        gate, up = (case.x[rows].double() @ case.gate_up[expert].double().T).chunk(2, dim=1)
        hidden = torch.nn.functional.silu(gate) * up
        weights = case.weights[rows, choices].double()
        out[rows] += weights[:, None] * (hidden @ case.down[expert].double().T)
    return out


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("size", ROUTES, ids=str)
def test_route(size: tuple[int, int, int], renormalize: bool, dtype: torch.dtype) -> None:
    rows, num_experts, top_k = size
    logits = normal(rows, num_experts + 5).to(dtype)[:, :num_experts] * 2
    logits[::3] = logits[::3].round()  # many equals
    weights, ids = route(logits, top_k, renormalize)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int64)
    assert torch.equal(ids, logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k])
    expected = logits.double().softmax(1).gather(1, ids)
    assert_close(weights, expected / expected.sum(1, keepdim=True) if renormalize else expected)


def test_route_gives_good_ids_for_bad_logits(dtype: torch.dtype) -> None:
    logits = normal(6, 9).to(dtype)
    clean = route(logits, 3, renormalize=True)
    logits[2], logits[3, 4], logits[4] = torch.nan, torch.nan, -torch.inf
    weights, ids = route(logits, 3, renormalize=True)
    assert ids[2].tolist() == [0, 1, 2]
    assert ids[4].tolist() == [0, 1, 2]
    assert ids[3].unique().numel() == 3
    assert weights[2:5].isnan().all()
    others = [0, 1, 5]
    assert torch.equal(weights[others], clean[0][others])
    assert torch.equal(ids[others], clean[1][others])


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize(("rows", "num_experts", "top_k"), [(1, 128, 8), (40, 4, 3), (1500, 3, 1)])
def test_tiles_hold_every_pair_once(
    rows: int, num_experts: int, top_k: int, block: int, dtype: torch.dtype
) -> None:
    ids = normal(rows, num_experts, seed=rows).topk(top_k).indices
    if num_experts == 4:
        ids[ids == 2] = 3  # an expert without tokens
    tiles = sort_into_tiles(ids, num_experts, block)
    used = int(tiles.used)
    assert used <= tiles.most
    flat, num_pairs = ids.flatten().tolist(), ids.numel()
    expected = []
    for expert in range(num_experts):
        mine = [pair for pair, picked in enumerate(flat) if picked == expert]
        for start in range(0, len(mine), block):
            tile = mine[start : start + block]
            expected.append((expert, tile + [num_pairs] * (block - len(tile))))
    pairs = tiles.pairs.view(-1, block)[:used].tolist()
    assert list(zip(tiles.experts[:used].tolist(), pairs, strict=True)) == expected


@pytest.mark.parametrize(("size", "rows"), CASES, ids=str)
def test_moe(size: Size, rows: int, dtype: torch.dtype) -> None:
    check(inputs(size, rows, dtype))


def check(case: Inputs) -> None:
    x_before, ids_before = case.x.clone(), case.ids.clone()
    experts = pack_experts(case.gate_up, case.down, "silu")
    got = moe(case.x, case.weights, case.ids, experts)
    assert (got.dtype, got.is_contiguous()) == (case.x.dtype, True)
    assert_close(got, exact(case), looser=2)  # of the activations between, rounded as well
    assert torch.equal(replayed(lambda: moe(case.x, case.weights, case.ids, experts)), got)
    assert torch.equal(case.x, x_before)
    assert torch.equal(case.ids, ids_before)


def test_several_tiles_of_one_expert(dtype: torch.dtype) -> None:
    """All tokens pick the same experts; the others, all NaN, must not be read."""
    case = inputs(Size(6, 2, 40, 36), 70, dtype)
    case.ids[:] = torch.tensor([4, 1], device=DEVICE)
    for expert in (0, 2, 3, 5):
        case.gate_up[expert], case.down[expert] = torch.nan, torch.nan
    assert rows_of(140, 6, dtype) < 70
    check(case)


def test_nan_of_one_row_stays_in_it(dtype: torch.dtype) -> None:
    case = inputs(Size(4, 2, 16, 8), 5, dtype)
    experts = pack_experts(case.gate_up, case.down, "silu")
    clean = moe(case.x, case.weights, case.ids, experts)
    case.x[0], case.weights[0] = torch.nan, torch.nan
    got = moe(case.x, case.weights, case.ids, experts)
    assert torch.equal(got[1:], clean[1:])
    assert got[0].isnan().all()


def test_the_order_of_a_rows_ids_changes_nothing(dtype: torch.dtype) -> None:
    case = inputs(Size(8, 5, 40, 36), 7, dtype)
    experts = pack_experts(case.gate_up, case.down, "silu")
    order = torch.tensor([3, 0, 4, 1, 2], device=DEVICE)
    shuffled = moe(case.x, case.weights[:, order], case.ids[:, order], experts)
    assert torch.equal(shuffled, moe(case.x, case.weights, case.ids, experts))


def test_packing_copies_nothing(dtype: torch.dtype) -> None:
    case = inputs(Size(4, 2, 16, 8), 0, dtype)
    experts = pack_experts(case.gate_up, case.down, "silu")
    assert experts.gate_up[0].data is case.gate_up
    assert experts.down[0].data is case.down
    assert moe(case.x, case.weights, case.ids, experts).shape == (0, 16)
