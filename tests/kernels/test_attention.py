"""Paged attention: the cpu op set against its twin, and the twin against plain attention."""

from __future__ import annotations

import pytest
import torch

from kernels.attention import AttentionShape, plan_attention
from kernels.cpu.attention import CpuPlan
from kernels.cpu.tiles import QUERY_TILE
from kernels.opset import OpSet
from tests.kernels.paged import make

MIXED = [(1, 1), (1, 40), (5, 5), (1, 333), (63, 63), (1, 16), (7, 100), (1, 17), (2, 513), (1, 700)]
SHAPES = [
    AttentionShape(4, 2, 32, 32**-0.5),
    AttentionShape(3, 3, 20, 20**-0.5),
    AttentionShape(8, 1, 64, 64**-0.5),
    AttentionShape(1, 1, 2, 2**-0.5),
]


@pytest.mark.parametrize("block_size", [1, 8, 16, 24])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixed_batch_equals_reference(
    shape: AttentionShape, block_size: int, cpu: OpSet, reference: OpSet
) -> None:
    paged = make(MIXED, shape, block_size)
    got = paged.run(cpu)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, paged.run(reference), rtol=1e-4, atol=1e-5)


def test_reference_equals_attention_without_pages(reference: OpSet) -> None:
    shape = AttentionShape(4, 2, 16, 16**-0.5)
    paged = make(MIXED, shape)
    got = paged.run(reference)
    start = 0
    for (num_queries, context), keys, values in zip(MIXED, paged.keys, paged.values, strict=True):
        mask = torch.ones(num_queries, context).tril(context - num_queries).bool()
        expected = torch.nn.functional.scaled_dot_product_attention(
            paged.q[start : start + num_queries].transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=mask,
            enable_gqa=True,
        )
        torch.testing.assert_close(got[start : start + num_queries], expected[0].transpose(0, 1))
        start += num_queries


def test_the_plan_of_a_chunk_far_into_a_context_is_small(torch_cpu: OpSet) -> None:
    """A bias over the whole context would be 512 · 4 · 16384 floats, 128 MiB."""
    shape = AttentionShape(8, 2, 4, 4**-0.5)
    plan = plan_attention(torch_cpu, make([(512, 16_384)], shape).metadata, shape)
    assert isinstance(plan, CpuPlan)
    assert sum(group.bias.numel() for group in plan.groups) < 512 * 4 * 2 * QUERY_TILE


def test_long_prompt_is_cut_into_tiles(cpu: OpSet, reference: OpSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.cpu.tiles.MAX_SCORES", 1 << 12)
    monkeypatch.setattr("kernels.cpu.tiles.MAX_GATHER", 1 << 12)
    paged = make(MIXED, AttentionShape(4, 2, 8, 8**-0.5))
    torch.testing.assert_close(paged.run(cpu), paged.run(reference), rtol=1e-4, atol=1e-5)
