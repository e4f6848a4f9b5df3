"""Triton's paged attention against the reference in float32, in caches full of NaN wherever no token is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention import attention as checked_attention
from kernels.attention import plan_attention as checked_plan
from kernels.opset import OpSet
from kernels.triton.attention import TritonPlan, attention, launch_of, plan_attention
from kernels.triton.attention_split import MAX_SPLITS, MIN_KEYS_PER_SPLIT, num_splits_of
from tests.kernels.paged import Paged
from tests.kernels.triton.cases_attention import (
    CASES,
    DECODES,
    MIXED,
    Case,
    paged_of,
    shape_of,
    with_splits,
)
from tests.kernels.triton.closeness import assert_close
from tests.kernels.triton.device import DEVICE, DTYPES

SPLIT_CASES = [
    Case(DECODES, shape_of(64, 1, 4), 16),
    Case(DECODES, shape_of(80, 2, 2, window=70, soft_cap=2.0), 8, is_fp8=True),
    Case(DECODES, shape_of(32, 1, 3, alibi=True), 64),
]


def run(paged: Paged, reference: OpSet, num_splits: int | None = None) -> Tensor:
    """By way of the checks; `num_splits`: instead of the plan's."""
    ops = replace(reference, plan_attention=plan_attention, attention=attention)
    plan = checked_plan(ops, paged.metadata, paged.shape)
    if num_splits is not None:
        plan = with_splits(plan, num_splits)
    out = torch.full_like(paged.q, torch.nan)
    checked_attention(ops, paged.q, paged.cache, plan, out)
    return out


def expected_of(paged: Paged, reference: OpSet) -> Tensor:
    """From the same rounded numbers, in float32."""
    cache = paged.cache
    if cache.key_scales is None:
        cache = replace(cache, keys=cache.keys.float(), values=cache.values.float())
    return replace(paged, q=paged.q.float(), cache=cache).run(reference)


def looser(dtype: torch.dtype) -> float:
    """Weights are rounded to 16 bits before they meet the values, so there are two roundings, not one."""
    return 1.0 if dtype == torch.float32 else 2.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(case: Case, dtype: torch.dtype, reference: OpSet) -> None:
    paged = paged_of(case, dtype)
    assert_close(run(paged, reference), expected_of(paged, reference), looser(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_splits", [1, 2, 7])
@pytest.mark.parametrize("case", SPLIT_CASES, ids=str)
def test_any_number_of_splits_gives_the_same(
    case: Case, num_splits: int, dtype: torch.dtype, reference: OpSet
) -> None:
    paged = paged_of(case, dtype)
    assert_close(run(paged, reference, num_splits), expected_of(paged, reference), looser(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_decodes", "num_splits"), [(0, 1), (1, 3), (2, 1), (2, 3)], ids=lambda number: str(number)
)
def test_decodes_before_prompts_may_have_a_launch_of_their_own(
    num_decodes: int, num_splits: int, dtype: torch.dtype, reference: OpSet
) -> None:
    """All of them, some, or none: decodes that are not counted go with the prompts."""
    paged = paged_of(Case([(1, 40), (1, 131), (5, 9), (1, 17)], shape_of(32, 1, 2)), dtype)
    metadata = replace(paged.metadata, num_decodes=num_decodes)
    plan = plan_attention(metadata, paged.shape)
    assert isinstance(plan, TritonPlan)
    queries = [part.metadata.max_query_len for part in plan.parts]
    assert queries == ([1, 5] if num_decodes else [5])
    got = run(replace(paged, metadata=metadata), reference, num_splits)
    assert_close(got, expected_of(paged, reference), looser(dtype))


@pytest.mark.skipif(DEVICE != "cuda", reason="the interpreter always decodes by integer arithmetic")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.is_fp8], ids=str)
def test_fp8_without_its_instruction_gives_the_same(case: Case, dtype: torch.dtype) -> None:
    paged = paged_of(case, dtype)
    plan = plan_attention(paged.metadata, paged.shape)
    assert isinstance(plan, TritonPlan)
    results = []
    for has_native_fp8 in {False, plan.has_native_fp8}:
        results.append(torch.full_like(paged.q, torch.nan))
        attention(paged.q, paged.cache, replace(plan, has_native_fp8=has_native_fp8), results[-1])
    assert torch.equal(results[0], results[-1])


@pytest.mark.parametrize(("lengths", "num_splits"), [(DECODES, 1), (DECODES, 3), (MIXED, 1)], ids=str)
def test_a_query_without_a_context_gets_zeros(
    lengths: list[tuple[int, int]], num_splits: int, reference: OpSet
) -> None:
    """As a recorded step's padding has them."""
    paged = paged_of(Case(lengths, shape_of(64, 2, 2)), DTYPES[-1])
    assert paged.metadata.block_tables[0].count_nonzero() == 1
    whole = run(paged, reference, num_splits)
    paged.metadata.context_lens[0] = 0
    paged.metadata.block_tables[0] = 0
    got = run(paged, reference, num_splits)
    assert (got[0] == 0).all()
    assert torch.equal(got[1:], whole[1:])


@pytest.mark.parametrize(("lengths", "num_splits"), [(DECODES, 1), (DECODES, 3), (MIXED, 1)], ids=str)
@pytest.mark.parametrize("is_fp8", [False, True])
def test_nan_in_a_context_comes_through_and_stays_there(
    lengths: list[tuple[int, int]], num_splits: int, is_fp8: bool, reference: OpSet
) -> None:
    paged = paged_of(Case(lengths, shape_of(64, 1, 2), is_fp8=is_fp8), DTYPES[-1])
    whole = run(paged, reference, num_splits)
    b = 3
    slot = int(paged.metadata.block_tables[b, 0])
    poisoned = paged.cache.keys if paged.cache.key_scales is None else paged.cache.key_scales
    poisoned[slot, 0] = torch.nan
    got = run(paged, reference, num_splits)
    start, end = paged.metadata.cu_seqlens_q[b : b + 2].tolist()
    assert got[start:end].isnan().all()
    assert torch.equal(got[:start], whole[:start])
    assert torch.equal(got[end:], whole[end:])


@pytest.mark.parametrize("lengths", [DECODES, MIXED], ids=str)
def test_bounds_need_not_be_reached(lengths: list[tuple[int, int]], reference: OpSet) -> None:
    """A recorded step has those of its later replays; what is read off the device decides."""
    paged = paged_of(Case(lengths, shape_of(64, 1, 2)), DTYPES[-1])
    more = 1 if lengths == DECODES else 300
    metadata = replace(paged.metadata, max_query_len=more, max_context_len=4000)
    bounded = replace(paged, metadata=metadata)
    assert_close(run(bounded, reference), expected_of(paged, reference), looser(DTYPES[-1]))


def test_a_sequence_has_the_same_result_alone(reference: OpSet) -> None:
    paged = paged_of(Case(DECODES, shape_of(64, 2, 4)), DTYPES[-1])
    whole = run(paged, reference, 1)
    for b in (0, 3, 5):
        metadata = replace(
            paged.metadata,
            cu_seqlens_q=paged.metadata.cu_seqlens_q[:2],
            context_lens=paged.metadata.context_lens[b : b + 1],
            block_tables=paged.metadata.block_tables[b : b + 1],
            slot_mapping=paged.metadata.slot_mapping[b : b + 1],
        )
        alone = replace(paged, q=paged.q[b : b + 1], metadata=metadata)
        assert torch.equal(run(alone, reference, 1)[0], whole[b])


def test_queries_may_be_strided(reference: OpSet) -> None:
    paged = paged_of(Case([(1, 20), (5, 9)], shape_of(64, 2, 2)), DTYPES[-1])
    wide = torch.full((6, 9, 64), torch.nan, device=DEVICE, dtype=paged.q.dtype)
    wide[:, 3:7] = paged.q
    assert torch.equal(run(replace(paged, q=wide[:, 3:7]), reference), run(paged, reference))


def test_more_sequences_than_are_counted_at_once(reference: OpSet) -> None:
    """A tile counts the sequences that start before it 256 at a time."""
    lengths = [(0, 1)] * 200 + [(1, 3)] * 2 + [(0, 1)] * 100 + [(2, 5), (1, 1)]
    paged = paged_of(Case(lengths, shape_of(16, 1, 1)), DTYPES[-1])
    assert_close(run(paged, reference), expected_of(paged, reference), looser(DTYPES[-1]))


def test_the_number_of_splits() -> None:
    for num_sms in (108, 132):
        for num_programs in (1, 2, 7, 8, 64, 131, 132, 133, 264, 265, 2048):
            splits = [num_splits_of(num_programs, keys, num_sms) for keys in (1, 200, 1000, 4000, 131072)]
            assert splits == sorted(splits)
            assert splits[0] == 1
            assert all(1 <= n <= MAX_SPLITS for n in splits)
            assert splits[-1] * num_programs <= 2 * num_sms or splits[-1] == 1
    assert num_splits_of(8, 4000, 132) == 4000 // MIN_KEYS_PER_SPLIT
    assert num_splits_of(64 * 8, 131072, 132) == 1


def test_a_tile_holds_a_group_and_suits_the_instructions() -> None:
    for group in (1, 3, 8, 16, 71):
        for head_dim in (16, 64, 80, 128, 256):
            for max_query_len in (1, 2, 16, 512):
                for dtype in (torch.float32, torch.bfloat16):
                    for is_fp8 in (False, True):
                        launch = launch_of(max_query_len, group, head_dim, dtype, is_fp8)
                        for size in (launch.block_m, launch.block_n):
                            assert size >= 16
                            assert size & (size - 1) == 0
                        assert launch.block_m >= group


@pytest.mark.skipif(DEVICE != "cuda", reason="only a CUDA device records graphs")
@pytest.mark.parametrize("num_splits", [1, 5])
def test_a_recorded_step_serves_other_contexts(num_splits: int, reference: OpSet) -> None:
    lengths = [(1, 900 + 100 * i) for i in range(8)]
    paged = paged_of(Case(lengths, shape_of(128, 8, 4)), torch.bfloat16)
    plan = plan_attention(replace(paged.metadata, max_context_len=4096), paged.shape)
    assert isinstance(plan, TritonPlan)
    plan = replace(plan, num_splits=num_splits)
    out = torch.full_like(paged.q, torch.nan)
    attention(paged.q, paged.cache, plan, out)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(paged.q, paged.cache, plan, out)
    for context_lens in ([900 + 100 * i for i in range(8)], [1, 0, 3, 64, 65, 0, 1500, 17]):
        paged.metadata.context_lens.copy_(torch.tensor(context_lens, dtype=torch.int32))
        out.fill_(torch.nan)
        graph.replay()
        assert_close(out, expected_of(paged, reference), looser(torch.bfloat16))
