"""Windows, caps, slopes and half precision: the cpu op set against its twin, and the twin against a loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.attention import AttentionShape, attention, plan_attention
from kernels.cpu.attention import CpuPlan
from kernels.cpu.paged import as_stored
from kernels.cpu.tiles import KEY_TILE
from kernels.opset import OpSet
from tests.kernels.paged import make

MIXED = [(1, 1), (1, 40), (5, 5), (1, 333), (263, 263), (1, 16), (7, 100), (1, 17), (140, 513), (1, 700)]
HEADS = [(4, 2, 32), (3, 3, 20), (8, 1, 64), (1, 1, 2)]
WINDOWS = [1, 5, 16, 100, 129, 1000]


def with_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> AttentionShape:
    return AttentionShape(num_heads, num_kv_heads, head_dim, scale=0.3)


def slopes(num_heads: int) -> tuple[float, ...]:
    return tuple(0.7 ** (i + 1) for i in range(num_heads))


def features(shape: AttentionShape) -> dict[str, AttentionShape]:
    capped, sloped = replace(shape, soft_cap=2.0), replace(shape, alibi_slopes=slopes(shape.num_heads))
    return {
        **{f"window {window}": replace(shape, window=window) for window in WINDOWS},
        "cap": capped,
        "slopes": sloped,
        "window and cap": replace(capped, window=100),
        "window and slopes": replace(sloped, window=100),
        "all": replace(sloped, window=100, soft_cap=2.0),
    }


@pytest.mark.parametrize("block_size", [1, 16, 24])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_features_equal_reference(
    heads: tuple[int, int, int], block_size: int, cpu: OpSet, reference: OpSet
) -> None:
    paged = make(MIXED, with_heads(*heads), block_size)
    results = {}
    for name, shape in features(paged.shape).items():
        of_shape = replace(paged, shape=shape)
        results[name] = of_shape.run(cpu)
        assert torch.isfinite(results[name]).all(), name
        torch.testing.assert_close(results[name], of_shape.run(reference), rtol=1e-4, atol=1e-5, msg=name)
    del results["window 1000"]  # longer than every context
    for name, result in results.items():
        assert not torch.allclose(result, paged.run(cpu), rtol=1e-3), f"{name} changes nothing"


def test_a_window_longer_than_every_context_changes_no_bit(cpu: OpSet) -> None:
    paged = make(MIXED, with_heads(4, 2, 32))
    assert torch.equal(replace(paged, shape=replace(paged.shape, window=700)).run(cpu), paged.run(cpu))


@pytest.mark.parametrize("window", [0, 1, 5, 40])
def test_reference_equals_a_loop_over_queries(window: int, reference: OpSet) -> None:
    """In float64, straight from the definitions: which keys a query sees is counted out."""
    lengths = [(1, 1), (9, 9), (3, 60)]
    shape = replace(with_heads(4, 2, 8), window=window, soft_cap=1.5, alibi_slopes=slopes(4))
    paged = make(lengths, shape)
    got, row = paged.run(reference).double(), 0
    for (num_queries, context), keys, values in zip(lengths, paged.keys, paged.values, strict=True):
        for position in range(context - num_queries, context):
            seen = list(range(max(0, position - window + 1) if window else 0, position + 1))
            assert len(seen) == (min(window, position + 1) if window else position + 1)
            for head in range(4):
                scores = keys[seen, head // 2].double() @ paged.q[row, head].double() * 0.3
                scores = 1.5 * torch.tanh(scores / 1.5)
                scores += slopes(4)[head] * (torch.tensor(seen) - position)
                expected = scores.softmax(0) @ values[seen, head // 2].double()
                torch.testing.assert_close(got[row, head], expected, rtol=1e-4, atol=1e-5)
            row += 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close_to_float32(dtype: torch.dtype, cpu: OpSet, reference: OpSet) -> None:
    """The inputs are the same rounded numbers, so that only what the result is rounded to may differ."""
    for heads in HEADS:
        paged = make(MIXED, with_heads(*heads)).to(dtype)
        for name, shape in {"plain": paged.shape, **features(paged.shape)}.items():
            of_shape = replace(paged, shape=shape)
            expected = of_shape.to(torch.float32).run(reference)
            tolerance = torch.finfo(dtype).eps
            for ops in (cpu, reference):
                got = of_shape.run(ops)
                assert got.dtype == dtype
                torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("block_size", [1, 16, 24, 256])
@pytest.mark.parametrize("window", WINDOWS)
def test_keys_before_a_window_are_not_gathered(window: int, block_size: int, cpu: OpSet) -> None:
    """NaN in them would come out, even with weight 0: what is read starts within a tile of the window."""
    lengths = [(1, 3000), (1, 1537), (200, 2900), (1, 40)]
    shape = replace(with_heads(2, 1, 8), window=window)
    paged = make(lengths, shape, block_size)
    plain = paged.run(cpu)
    alignment = KEY_TILE if KEY_TILE % block_size == 0 else 3 * KEY_TILE if block_size == 24 else block_size
    for b, (num_queries, context) in enumerate(lengths):
        needed = max(0, context - num_queries - window + 1)
        unread = max(0, needed - alignment + 1) // block_size
        blocks = paged.metadata.block_tables[b, :unread].long()
        paged.cache.keys[blocks], paged.cache.values[blocks] = torch.nan, torch.nan
    assert torch.equal(paged.run(cpu), plain)


def test_a_window_costs_the_window_not_the_context(torch_cpu: OpSet) -> None:
    shape = replace(with_heads(8, 2, 4), window=100)
    lengths = [(1, 16_384), (512, 16_000), (1, 20), (1, 10_001)]
    plan = plan_attention(torch_cpu, make(lengths, shape).metadata, shape)
    assert isinstance(plan, CpuPlan)
    decode, tile = 2 * KEY_TILE, 3 * KEY_TILE + 100
    assert max(group.num_keys for group in plan.groups) <= tile
    gathered = sum(group.blocks.numel() * 16 for group in plan.groups)
    assert gathered <= 3 * decode + 5 * tile
    biases = sum(
        g.bias.numel() + (0 if g.window_bias is None else g.window_bias.numel()) for g in plan.groups
    )
    assert biases <= 4 * 512 * 2 * tile


def test_a_long_window_has_no_bias_over_all_of_it(torch_cpu: OpSet) -> None:
    """Two of the whole window would be 512 · 4 · 8192 floats each, 64 MiB."""
    shape = replace(with_heads(8, 2, 4), window=8192)
    plan = plan_attention(torch_cpu, make([(512, 16_384)], shape).metadata, shape)
    assert isinstance(plan, CpuPlan)
    for group in plan.groups:
        assert group.window_bias is not None
        assert group.window_bias.shape[-1] <= 2 * KEY_TILE
        assert group.bias.shape[-1] <= 2 * KEY_TILE


def test_plans_of_two_shapes_live_side_by_side(cpu: OpSet, reference: OpSet) -> None:
    """Layers that alternate use both plans in turn; the memory for gathered keys is shared."""
    full = make(MIXED, with_heads(4, 2, 32))
    shapes = (full.shape, replace(full.shape, window=100))
    cache = as_stored(full.cache) if cpu.stores_by_head else full.cache
    plans = [plan_attention(cpu, full.metadata, shape) for shape in shapes]
    for _ in range(2):
        for shape, plan in zip(shapes, plans, strict=True):
            out = torch.full_like(full.q, torch.nan)
            cpu.attention(full.q, cache, plan, out)
            expected = replace(full, shape=shape).run(reference)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_wrappers_name_what_is_wrong(cpu: OpSet) -> None:
    paged = make([(1, 5)], with_heads(4, 2, 8))
    with pytest.raises(AssertionError, match="alibi_slopes: not one for each query head"):
        plan_attention(cpu, paged.metadata, replace(paged.shape, alibi_slopes=(0.5,)))
    with pytest.raises(AssertionError, match="window -1"):
        plan_attention(cpu, paged.metadata, replace(paged.shape, window=-1))
    with pytest.raises(AssertionError, match="soft_cap -1"):
        plan_attention(cpu, paged.metadata, replace(paged.shape, soft_cap=-1.0))
    plan, half = plan_attention(cpu, paged.metadata, paged.shape), paged.to(torch.bfloat16)
    with pytest.raises(AssertionError, match=r"out: torch\.float32, expected torch\.bfloat16"):
        attention(cpu, half.q, half.cache, plan, torch.empty(1, 4, 8))
    with pytest.raises(AssertionError, match=r"q: shape \(1, 2, 8\), expected \(1, 4, 8\)"):
        attention(cpu, paged.q[:, :2], paged.cache, plan, torch.empty(1, 2, 8))


def test_a_query_without_a_context_gets_zeros(cpu: OpSet, reference: OpSet) -> None:
    paged = make([(1, 20), (1, 1), (3, 9)], AttentionShape(4, 2, 8, 0.3))
    context_lens = torch.tensor([20, 0, 9], dtype=torch.int32)
    empty = replace(paged, metadata=replace(paged.metadata, context_lens=context_lens))
    whole = paged.run(cpu)
    for ops in (cpu, reference):
        out = empty.run(ops)
        assert (out[1] == 0).all()
        torch.testing.assert_close(out[[0, 2, 3, 4]], whole[[0, 2, 3, 4]])
