"""Small operations of the cpu op set against plain torch, on odd shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.checks import FLOATS
from kernels.elements import add, copy, plain_take, scale, take
from kernels.opset import OpSet

SHAPES = [(1, 1), (1, 70), (5, 16), (17, 33), (40, 1000)]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_sums_products_and_copies_stay_within_their_rows(
    rows: int, width: int, dtype: torch.dtype, num_threads: int, cpu: OpSet
) -> None:
    torch.set_num_threads(num_threads)
    x = normal(rows, width + 5, seed=1, dtype=dtype)[:, 2 : 2 + width]
    whole = normal(rows, width + 7, seed=2, dtype=dtype)
    to, before = whole[:, 3 : 3 + width], whole.clone()
    expected = before[:, 3 : 3 + width].clone()
    add(cpu, x, to)
    assert torch.equal(to, expected.add_(x))
    scale(cpu, to, 0.3)
    assert torch.equal(to, expected.mul_(0.3))
    copy(cpu, x, to)
    assert torch.equal(to, x)
    for beside in (slice(0, 3), slice(3 + width, None)):
        assert torch.equal(whole[:, beside], before[:, beside])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rows_are_taken_by_number(rows: int, width: int, dtype: torch.dtype, cpu: OpSet) -> None:
    table = normal(rows, width, seed=3, dtype=dtype)
    ids = torch.randint(rows, (9,), generator=torch.Generator().manual_seed(4))
    taken = take(cpu, table, ids)
    assert taken.is_contiguous()
    assert taken.dtype == (cpu.computes_in or dtype)
    assert torch.equal(taken, plain_take(table, ids).to(taken.dtype))


def test_tables_have_to_be_whole(cpu: OpSet) -> None:
    table = normal(4, 6, seed=5)
    with pytest.raises(AssertionError, match="table"):
        take(cpu, table[:, :3], torch.tensor([0]))
    with pytest.raises(AssertionError, match="ids"):
        take(cpu, table, torch.tensor([0], dtype=torch.int32))
