"""Keys and values in 8 bits: stored as the reference stores them, read as it reads them, by every target."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention import AttentionShape, LayerCache, in_8_bits, store_kv
from kernels.cpu import make_op_set, native
from kernels.cpu.native.build import library, targets
from kernels.cpu.paged import as_stored, by_token
from kernels.opset import OpSet
from tests.kernels.paged import Paged, make

MIXED = [(1, 1), (1, 40), (5, 5), (1, 333), (263, 263), (1, 16), (7, 100), (1, 17), (140, 513), (1, 700)]
SHAPES = [
    AttentionShape(4, 2, 32, 32**-0.5),
    AttentionShape(3, 3, 20, 0.3, window=100),
    AttentionShape(8, 1, 64, 0.3, soft_cap=2.0),
    AttentionShape(16, 8, 128, 128**-0.5, alibi_slopes=tuple(0.7**i for i in range(16))),
]


def of_8_bits(shape: AttentionShape, block_size: int) -> tuple[Paged, Paged]:
    """Sequences, and the same with their keys and values rounded."""
    paged = make(MIXED, shape, block_size)
    (keys, key_scales), (values, value_scales) = (
        in_8_bits(x, torch.int8) for x in (paged.cache.keys, paged.cache.values)
    )
    return paged, replace(paged, cache=LayerCache(keys, values, key_scales, value_scales))


@pytest.mark.parametrize("block_size", [1, 8, 16, 24, 32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_equals_reference(
    shape: AttentionShape, block_size: int, cpu: OpSet, reference: OpSet
) -> None:
    exact, rounded = of_8_bits(shape, block_size)
    got = rounded.run(cpu)
    torch.testing.assert_close(got, rounded.run(reference), rtol=1e-4, atol=1e-5)
    error = (got - exact.run(reference)).abs().max()
    assert 1e-4 < error < 0.1, "values are of about 1: an eighth bit of the greatest is about 0.02"


@pytest.mark.parametrize("block_size", [16, 24])
def test_a_prompt_in_chunks_equals_decodes(block_size: int, cpu: OpSet) -> None:
    _, paged = of_8_bits(AttentionShape(4, 2, 32, 0.2), block_size)
    whole, index = paged.pick([(4, 0, 263)])
    result = whole.run(cpu)
    assert torch.equal(result, paged.run(cpu)[index]), "beside others"
    for start, end in [(0, 37), (37, 166), (166, 263), *((at, at + 1) for at in range(0, 263, 13))]:
        part, _ = paged.pick([(4, start, end)])
        assert torch.equal(part.run(cpu), result[start:end]), f"{start} to {end}"


def test_the_order_of_its_own_goes_both_ways() -> None:
    _, paged = of_8_bits(SHAPES[0], 24)
    back = by_token(as_stored(paged.cache))
    assert all(torch.equal(mine, given) for mine, given in zip(parts(back), parts(paged.cache), strict=True))


def parts(cache: LayerCache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert cache.key_scales is not None
    assert cache.value_scales is not None
    return cache.keys, cache.values, cache.key_scales.nan_to_num(-1.0), cache.value_scales.nan_to_num(-1.0)


SLOTS = torch.randperm(8 * 12, generator=torch.Generator().manual_seed(1))[:37]


def stored(ops: OpSet, x: Tensor, *, head_dim: int) -> LayerCache:
    """Tokens' keys, and twice as much as their values, in a cache of 8 blocks of 12."""
    size = (8, 12, 3)
    numbers = (torch.zeros(*size, head_dim, dtype=torch.int8) for _ in range(2))
    cache = LayerCache(*numbers, *(torch.full(size, -1.0) for _ in range(2)))
    store_kv(ops, x, x * 2, cache, SLOTS)
    return by_token(cache) if ops.stores_by_head else cache


def tokens(head_dim: int) -> Tensor:
    gen = torch.Generator().manual_seed(head_dim)
    x = torch.randn(len(SLOTS), 3, head_dim, generator=gen)
    return x * torch.logspace(-30, 30, len(SLOTS))[:, None, None]


@pytest.mark.parametrize("head_dim", [1, 20, 64, 129, 256])
def test_numbers_are_stored_as_the_reference_stores_them(head_dim: int, cpu: OpSet, reference: OpSet) -> None:
    x = tokens(head_dim)
    x[3, 1] = 0
    mine, theirs = stored(cpu, x, head_dim=head_dim), stored(reference, x, head_dim=head_dim)
    for found, expected in zip(parts(mine), parts(theirs), strict=True):
        assert torch.equal(found, expected)
    keys, _, scales, _ = parts(mine)
    back = (keys * scales[..., None]).flatten(0, 1)[SLOTS]
    assert ((back - x).abs() <= x.abs().amax(-1, keepdim=True) / 253.9).all()
    assert keys.flatten(0, 1)[SLOTS].abs().amax() == 127
    assert int((scales != -1).sum()) == x.shape[0] * 3, "somebody else's slots were written to"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_read_as_nan_and_stays_with_its_head(bad: float, cpu: OpSet) -> None:
    x = tokens(20)
    clean = parts(stored(cpu, x, head_dim=20))
    x[5, 1, 7] = bad
    spoilt = stored(cpu, x, head_dim=20)
    assert spoilt.key_scales is not None
    read = (spoilt.keys * spoilt.key_scales[..., None]).flatten(0, 1)[SLOTS]
    is_nan = read.isnan().all(-1)
    assert is_nan[5, 1]
    assert is_nan.sum() == 1
    good = torch.ones(8 * 12, 3, dtype=torch.bool)
    good[SLOTS[5], 1] = False
    for before, after in zip(clean, parts(spoilt), strict=True):
        assert torch.equal(before.flatten(0, 1)[good], after.flatten(0, 1)[good])


def test_every_target_of_this_processor_gives_the_same(reference: OpSet) -> None:
    fitting = [one for one in targets() if native._NEEDED[one] <= native._features()]
    assert fitting, "the C++ kernels are not built: make test builds them"
    assert native.load() is not None  # brings the OpenMP runtime that they share
    x = tokens(129)
    expected = parts(stored(reference, x, head_dim=129))
    _, paged = of_8_bits(SHAPES[3], 16)
    attended = paged.run(reference)
    for target in fitting:
        ops = make_op_set(ctypes.CDLL(str(library(target))))
        for found, wanted in zip(parts(stored(ops, x, head_dim=129)), expected, strict=True):
            assert torch.equal(found, wanted), target
        torch.testing.assert_close(paged.run(ops), attended, rtol=1e-4, atol=1e-5, msg=target)
