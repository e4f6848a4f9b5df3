"""Operations that are recorded and replayed, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.activation import act_and_mul
from kernels.cpu import make_op_set, native
from kernels.elements import add, copy, scale, take
from kernels.linear import LinearWeight, linear, pack_linear
from kernels.norm import add_rms_norm, layer_norm, rms_norm
from kernels.opset import Recorded

pytestmark = pytest.mark.skipif(native.load() is None, reason="only the C++ kernels can be recorded")

ENTRIES, WIDTH, LAYERS = 50, 70, 30
MOST_ROWS = 9
EPS = 1e-6


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Pass:
    """Some of every small operation, layer after layer, on ids and a table that stay where they are."""

    def __init__(self, stored: torch.dtype = torch.float32) -> None:
        self.ops = make_op_set(native.load(), stored)
        self.ids = torch.tensor([3, 0, 49, 7, 7, 1, 2, 11, 12])
        self.table = normal(ENTRIES, WIDTH, seed=1)
        self.norm = normal(WIDTH, seed=2)
        self.tied = self._pack(ENTRIES, 3)
        self.up, self.down = self._pack(2 * WIDTH, 4), self._pack(WIDTH, 5)

    def _pack(self, outputs: int, seed: int) -> LinearWeight:
        return pack_linear(self.ops, normal(outputs, WIDTH, seed=seed), None)

    def __call__(self, rows: int) -> Tensor:
        ops, ids = self.ops, self.ids[:rows]
        assert ops.rows is not None
        residual = take(ops, self.table, ids)
        add(ops, ops.rows(self.tied, ids), residual)
        x = rms_norm(ops, residual, self.norm, EPS)
        for _ in range(LAYERS):
            inner = act_and_mul(ops, linear(ops, x, self.up), "silu")
            half = inner[:, : WIDTH // 2]
            copy(ops, layer_norm(ops, half, self.norm[: WIDTH // 2], None, EPS), half)
            x = linear(ops, inner, self.down)
            scale(ops, x, 0.7)
            x = add_rms_norm(ops, x, residual, self.norm, EPS)
        return x

    def record(self, rows: int, then: Callable[[Tensor], Tensor] = lambda x: x) -> Recorded:
        assert self.ops.record is not None
        return self.ops.record(lambda: then(self(rows)), rows, MOST_ROWS)


def replay(recorded: Recorded, rows: int) -> Tensor:
    assert recorded.replay is not None, recorded.reason
    return recorded.replay(rows)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("recorded_rows", [1, 4, 9])
def test_replays_of_any_size_compute_anew_what_an_eager_pass_would(
    recorded_rows: int, stored: torch.dtype, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    run = Pass(stored)
    recorded = run.record(recorded_rows)
    assert torch.equal(recorded.result, run(recorded_rows))
    for rows in (1, 9, 3, 9, 2):
        run.ids.copy_(run.ids.roll(1))
        run.table.mul_(1.1)
        replay(recorded, 9).fill_(torch.nan)
        assert torch.equal(replay(recorded, rows), run(rows))


def test_recordings_do_not_disturb_each_other() -> None:
    run = Pass()
    first, second = run.record(2), run.record(5)
    whole = run(9)
    for rows in (9, 4):
        one, other = replay(first, rows), replay(second, 3)
        assert torch.equal(one, whole[:rows])
        assert torch.equal(other, whole[:3])


def test_layers_share_their_memory() -> None:
    """What an operation leaves is the next one's: of a layer's six tensors there are never seven."""
    run = Pass()
    places: set[int] = set()

    def note(x: Tensor) -> Tensor:
        places.add(x.data_ptr())
        return x

    ops = run.ops
    run.ops = replace(ops, linear=lambda x, weight: note(ops.linear(x, weight)))
    assert run.record(2).replay is not None
    assert len(places) <= 6 < LAYERS


def looked_at(x: Tensor) -> Tensor:
    return x if x[0, 0].item() < 1e9 else x.view(-1)


COMPUTING: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: x + 1, "aten.add"),
    (lambda x: x.mul_(2), "aten.mul_"),
    (lambda x: x.t().contiguous(), "aten."),
    (lambda x: x.double().float(), "aten."),
    (looked_at, "aten."),
    (lambda x: torch.zeros(3), "aten.zeros"),
    (lambda x: torch.empty(3, 5).view(5, 3), "aten.empty"),  # for which there would be no room
]


@pytest.mark.parametrize(("compute", "named"), COMPUTING)
def test_what_torch_computes_is_noticed(compute: Callable[[Tensor], Tensor], named: str) -> None:
    run = Pass()
    recorded = run.record(4, compute)
    assert recorded.replay is None
    assert f"torch computes {named}" in recorded.reason
    if named != "aten.empty":
        assert torch.equal(recorded.result, compute(run(4))), "it was run all the same"
    assert torch.equal(replay(run.record(4), 4), run(4))


def test_operations_on_other_rows_are_noticed() -> None:
    run = Pass()
    recorded = run.record(4, lambda x: add(run.ops, x[:2], x[2:]) or x)
    assert recorded.replay is None
    assert recorded.reason == "1 operations are not of 4 rows"


def test_views_and_allocations_compute_nothing() -> None:
    run = Pass()

    def views(x: Tensor) -> Tensor:
        torch.empty_like(x)
        x.new_empty((5, 4), dtype=torch.int32)
        first, _ = x.view(5, 2, 35).float().contiguous().transpose(0, 1).chunk(2)
        assert first.shape == (1, 5, 35)
        return x.view(5, 7, 10)

    assert torch.equal(replay(run.record(5, views), 7), run(7).view(7, 7, 10))


def test_a_failing_pass_ends_its_recording() -> None:
    run = Pass()

    def fail(x: Tensor) -> Tensor:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        run.record(5, fail)
    assert torch.equal(replay(run.record(5), 5), run(5))


def test_ids_that_a_table_lacks_are_refused_also_in_a_replay() -> None:
    run = Pass()
    recorded, rows = run.record(5), run.ops.rows
    assert rows is not None
    for wrong in (ENTRIES, -1):
        run.ids[2] = wrong
        with pytest.raises(AssertionError, match="TAKE"):
            take(run.ops, run.table, run.ids)
        with pytest.raises(AssertionError, match="UNPACK"):
            rows(run.tied, run.ids)
        with pytest.raises(AssertionError, match="does not suit"):
            replay(recorded, 5)


def test_operations_are_timed_by_their_names() -> None:
    run = Pass()
    recorded = run.record(5)
    assert recorded.replay is not None
    seconds = {"linear": 1.0}
    recorded.replay(3, seconds)
    assert seconds.keys() == {"take", "unpack", "elements", "norm", "linear", "activate"}
    assert seconds["linear"] > 1.0
    assert all(value > 0 for value in seconds.values())
