"""Operations that are recorded and replayed, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.activation import act_and_mul
from kernels.cpu import make_op_set, native
from kernels.elements import add, copy, scale, take
from kernels.linear import LinearWeight, linear, pack_linear
from kernels.norm import add_rms_norm, layer_norm, rms_norm
from kernels.opset import OpSet, Recorded

pytestmark = pytest.mark.skipif(native.load() is None, reason="only the C++ kernels can be recorded")

ENTRIES, WIDTH, LAYERS = 50, 70, 30
IDS = torch.tensor([3, 0, 49, 7, 7])
EPS = 1e-6


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Pass:
    """Some of every small operation, layer after layer, on ids and a table that stay where they are."""

    def __init__(self, ops: OpSet) -> None:
        self.ops = ops
        self.ids = IDS.clone()
        self.table = normal(ENTRIES, WIDTH, seed=1)
        self.norm = normal(WIDTH, seed=2)
        self.tied = self._pack(ENTRIES, 3)
        self.up, self.down = self._pack(2 * WIDTH, 4), self._pack(WIDTH, 5)

    def _pack(self, outputs: int, seed: int) -> LinearWeight:
        return pack_linear(self.ops, normal(outputs, WIDTH, seed=seed), None)

    def __call__(self) -> Tensor:
        ops = self.ops
        assert ops.rows is not None
        residual = take(ops, self.table, self.ids)
        add(ops, ops.rows(self.tied, self.ids), residual)
        x = rms_norm(ops, residual, self.norm, EPS)
        for _ in range(LAYERS):
            inner = act_and_mul(ops, linear(ops, x, self.up), "silu")
            half = inner[:, : WIDTH // 2]
            copy(ops, layer_norm(ops, half, self.norm[: WIDTH // 2], None, EPS), half)
            x = linear(ops, inner, self.down)
            scale(ops, x, 0.7)
            x = add_rms_norm(ops, x, residual, self.norm, EPS)
        return x


def record(ops: OpSet, run: Callable[[], Tensor]) -> Recorded:
    assert ops.record is not None
    return ops.record(run)


def replay(recorded: Recorded) -> Tensor:
    assert recorded.replay is not None, recorded.reason
    recorded.result.fill_(torch.nan)
    recorded.replay(None)
    return recorded.result


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.int8])
def test_a_replay_computes_anew_what_an_eager_pass_would(stored: torch.dtype, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    run = Pass(make_op_set(native.load(), stored))
    recorded = record(run.ops, run)
    assert torch.equal(recorded.result, run())
    for other in ([0, 1, 2, 3, 4], [49, 48, 0, 0, 9]):
        run.ids.copy_(torch.tensor(other))
        run.table.mul_(1.1)
        assert torch.equal(replay(recorded), run())


def test_recordings_share_their_memory_and_do_not_disturb_each_other() -> None:
    run = Pass(make_op_set(native.load(), torch.float32))
    first = record(run.ops, run)
    expected = first.result.clone()
    whole, run.ids = run.ids, run.ids[:2]
    second = record(run.ops, run)
    assert first.result.untyped_storage().data_ptr() != second.result.untyped_storage().data_ptr()
    spread = abs(first.result.data_ptr() - second.result.data_ptr())
    # Thirty layers would take 250 KB: what an operation leaves is the next one's.
    assert spread < 32_000
    for _ in range(2):
        assert torch.equal(replay(second), expected[:2])
        assert torch.equal(replay(first), expected)
    assert len(whole) == len(expected)


def looked_at(x: Tensor) -> Tensor:
    return x if x[0, 0].item() < 1e9 else x.view(-1)


COMPUTING: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: x + 1, "aten.add"),
    (lambda x: x.mul_(2), "aten.mul_"),
    (lambda x: x.t().contiguous(), "aten."),
    (lambda x: x.double().float(), "aten."),
    (looked_at, "aten."),
    (lambda x: torch.zeros(3), "aten.zeros"),
]


@pytest.mark.parametrize(("compute", "named"), COMPUTING)
def test_what_torch_computes_is_noticed(compute: Callable[[Tensor], Tensor], named: str) -> None:
    run = Pass(make_op_set(native.load()))
    recorded = record(run.ops, lambda: compute(run()))
    assert recorded.replay is None
    assert f"torch computes {named}" in recorded.reason
    assert torch.equal(recorded.result, compute(run())), "it was run all the same"
    again = record(run.ops, run)
    assert torch.equal(replay(again), run())


def test_views_and_allocations_compute_nothing() -> None:
    run = Pass(make_op_set(native.load()))

    def views() -> Tensor:
        x = run()
        torch.empty_like(x)
        x.new_empty((3, 4), dtype=torch.int32)
        first, _ = x.view(5, 2, 35).float().contiguous().transpose(0, 1).chunk(2)
        return first[0][1:]

    recorded = record(run.ops, views)
    assert torch.equal(replay(recorded), run()[1:, :35])


def test_a_failing_pass_ends_its_recording() -> None:
    run = Pass(make_op_set(native.load()))

    def fail() -> Tensor:
        run()
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        record(run.ops, fail)
    recorded = record(run.ops, run)
    assert torch.equal(replay(recorded), run())


def test_ids_that_a_table_lacks_are_refused_also_in_a_replay() -> None:
    run = Pass(make_op_set(native.load()))
    recorded, rows = record(run.ops, run), run.ops.rows
    assert recorded.replay is not None
    assert rows is not None
    for wrong in (ENTRIES, -1):
        run.ids[2] = wrong
        with pytest.raises(AssertionError, match="TAKE"):
            take(run.ops, run.table, run.ids)
        with pytest.raises(AssertionError, match="UNPACK"):
            rows(run.tied, run.ids)
        with pytest.raises(AssertionError, match="does not suit"):
            recorded.replay(None)


def test_operations_are_timed_by_their_names() -> None:
    run = Pass(make_op_set(native.load()))
    recorded = record(run.ops, run)
    assert recorded.replay is not None
    seconds = {"linear": 1.0}
    recorded.replay(seconds)
    assert seconds.keys() == {"take", "unpack", "elements", "norm", "linear", "activate"}
    assert seconds["linear"] > 1.0
    assert all(value > 0 for value in seconds.values())
