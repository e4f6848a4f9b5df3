"""Triton's norm, rotation and store against the reference; slots that belong to no token keep every bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import qkv as op
from kernels.attention import FP8, LayerCache
from kernels.attention import store_kv as checked_store_kv
from kernels.opset import OpSet
from kernels.triton.fp8 import decode, encode
from kernels.triton.qkv import rotate_and_store, store_kv
from tests.kernels.triton.cases_attention import empty_cache
from tests.kernels.triton.cases_qkv import CASES, Case, Inputs, inputs
from tests.kernels.triton.closeness import assert_close
from tests.kernels.triton.device import DEVICE, DTYPES, INTERPRETED


@triton.jit
def _encode_kernel(out: tl.tensor, x: tl.tensor, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + i, encode(tl.load(x + i)))


@triton.jit
def _decode_kernel(out: tl.tensor, code: tl.tensor, IS_NATIVE: tl.constexpr):
    i = tl.arange(0, 256)
    tl.store(out + i, decode(tl.load(code + i), tl.load(out + i), IS_NATIVE))


def test_encoding_rounds_as_torch_does() -> None:
    """All numbers of the type, halfway between them and a bit to either side, and random ones."""
    numbers = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    numbers = numbers[~numbers.isnan()].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    sides = [torch.nextafter(middles, torch.tensor(bound)) for bound in (-500.0, 500.0)]
    gen = torch.Generator().manual_seed(0)
    wild = torch.randn(1 << 13, generator=gen) * torch.randn(1 << 13, generator=gen).mul(3).exp()
    special = torch.tensor([-0.0, 1e-30, -1e-45, 448.0001, torch.nan])
    x = torch.cat([numbers, middles, *sides, wild.clamp(-448, 448), special])
    x = torch.nn.functional.pad(x, (0, -len(x) % 1024)).to(DEVICE)
    out = torch.empty(x.shape, dtype=torch.uint8, device=DEVICE)
    _encode_kernel[(x.shape[0] // 1024,)](out, x, 1024)
    assert torch.equal(out.cpu() & 0x7F, x.cpu().to(FP8).view(torch.uint8) & 0x7F)
    signed = ~x.cpu().isnan()
    assert torch.equal(out.cpu()[signed], x.cpu().to(FP8).view(torch.uint8)[signed])


# The interpreter's bfloat16 has no constants; its float16 is NumPy's and can be trusted.
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16) if INTERPRETED else DTYPES, ids=str)
@pytest.mark.parametrize("is_native", [False, True])
def test_decoding_is_exact(dtype: torch.dtype, is_native: bool) -> None:
    if is_native and (INTERPRETED or torch.cuda.get_device_capability() < (8, 9)):
        pytest.skip("no instruction for it here")
    codes = torch.arange(256, dtype=torch.uint8)
    out = torch.zeros(256, dtype=dtype, device=DEVICE)
    _decode_kernel[(1,)](out, codes.to(DEVICE), is_native)
    expected = codes.view(FP8).float()
    numbers = ~expected.isnan()
    assert torch.equal(out.cpu().float()[numbers], expected[numbers])


def parts_of(case: Case, made: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    heads = made.qkv.view(case.num_tokens, -1, case.head_dim)
    return heads.split((case.num_heads, case.num_kv_heads, case.num_kv_heads), dim=1)


def tensors_of(cache: LayerCache) -> list[Tensor]:
    """As integers, so that NaN equals NaN."""
    tensors = [cache.keys, cache.values, cache.key_scales, cache.value_scales]
    as_bytes = [x.view(torch.uint8) for x in tensors if x is not None]
    assert len(as_bytes) == (4 if cache.keys.dtype == FP8 else 2)
    return as_bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_store_equals_reference_in_every_bit(case: Case, dtype: torch.dtype, reference: OpSet) -> None:
    """Keys and values have strided rows here."""
    made = inputs(case, dtype)
    _, keys, values = parts_of(case, made)
    keys[0, 0] = 0.0
    got, expected = (empty_cache(made.cache_shape, FP8 if case.is_fp8 else dtype, DEVICE) for _ in range(2))
    slots = made.plan.metadata.slot_mapping
    checked_store_kv(replace(reference, store_kv=store_kv), keys, values, got, slots)
    checked_store_kv(reference, keys, values, expected, slots)
    for x, y in zip(tensors_of(got), tensors_of(expected), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rotate_and_store_equals_reference(case: Case, dtype: torch.dtype, reference: OpSet) -> None:
    made = inputs(case, dtype)
    ops: Any = replace(reference, rotate_and_store=rotate_and_store)
    got = empty_cache(made.cache_shape, FP8 if case.is_fp8 else dtype, DEVICE)
    q = op.rotate_and_store(ops, made.qkv, made.norm, made.turn, made.plan, got)
    exact = empty_cache(made.cache_shape, torch.float32, DEVICE)
    expected_q = reference.rotate_and_store(made.qkv.float(), made.norm, made.turn, made.plan, exact)
    assert q.dtype == dtype
    assert q.is_contiguous()
    assert_close(q, expected_q)
    slots = made.plan.metadata.slot_mapping
    stored_keys, stored_values = read(got, slots), read(exact, slots)
    if case.is_fp8:
        for x, y in zip(stored_keys, stored_values, strict=True):
            assert_within_a_rounding(x, y)
    else:
        assert_close(stored_keys[0].to(dtype), stored_values[0])
        assert torch.equal(stored_keys[1], stored_values[1])
    others = torch.ones(got.keys.shape[0] * got.keys.shape[1], dtype=torch.bool, device=DEVICE)
    others[slots] = False
    untouched = empty_cache(made.cache_shape, got.keys.dtype, DEVICE)
    for x, y in zip(tensors_of(got), tensors_of(untouched), strict=True):
        assert torch.equal(x.flatten(0, 1)[others], y.flatten(0, 1)[others])


def read(cache: LayerCache, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the slots, [T, kv_heads, D] float32."""

    def part(stored: Tensor, scales: Tensor | None) -> Tensor:
        x = stored.view(torch.uint8).flatten(0, 1)[slots].view(stored.dtype).float()
        return x if scales is None else x * scales.flatten(0, 1)[slots][..., None]

    return part(cache.keys, cache.key_scales), part(cache.values, cache.value_scales)


def assert_within_a_rounding(got: Tensor, exact: Tensor) -> None:
    """Of FP8: half of 2^-3 of a number, or half of the smallest step, and float32's own."""
    scale = exact.abs().amax(-1, keepdim=True) / 448
    limit = torch.maximum(exact.abs() * 2**-4, scale * 2**-10) * 1.0001 + exact.abs().amax() * 1e-6
    assert ((got - exact).abs() <= limit).all()


@pytest.mark.parametrize("is_fp8", [False, True])
def test_nan_is_stored_as_nan(is_fp8: bool) -> None:
    """A greatest magnitude passes over NaN; what is read back must not."""
    dtype = DTYPES[-1]
    case = Case(2, 2, 64, 0, is_fp8=is_fp8)
    made = inputs(case, dtype)
    _, keys, values = parts_of(case, made)
    keys[1, 0, 5], values[2, 1, 63] = torch.nan, torch.inf
    cache = empty_cache(made.cache_shape, FP8 if is_fp8 else dtype, DEVICE)
    store_kv(keys, values, cache, made.plan.metadata.slot_mapping)
    got_keys, got_values = read(cache, made.plan.metadata.slot_mapping)
    assert got_keys[1, 0, 5].isnan()
    assert not got_values[2, 1, 63].isfinite()
    assert got_keys[[0, 2, 3, 4]].isfinite().all()
    assert got_keys[1, 1].isfinite().all()


def test_several_rows_of_padding_share_a_slot() -> None:
    dtype = DTYPES[-1]
    case = Case(2, 2, 64, 0)
    made = inputs(case, dtype)
    _, keys, values = parts_of(case, made)
    slots = made.plan.metadata.slot_mapping.clone()
    slots[2:] = 0
    cache = empty_cache(made.cache_shape, dtype, DEVICE)
    store_kv(keys, values, cache, slots)
    assert torch.equal(read(cache, slots[:2])[0], keys[:2].float())
