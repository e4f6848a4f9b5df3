"""Philox against the vectors that Random123 publishes (kat_vectors, philox4x32 10)."""

from __future__ import annotations

import pytest
import torch

from kernels.opset import OpSet
from kernels.philox import philox, uniform

VECTORS = [
    # counter, key, output
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.fixture(params=["cpu", "torch_cpu", "reference"])
def ops(request: pytest.FixtureRequest) -> OpSet:
    return request.getfixturevalue(request.param)


def test_known_answers(ops: OpSet) -> None:
    key = torch.tensor([key for _, key, _ in VECTORS])
    counter = torch.tensor([counter for counter, _, _ in VECTORS])
    assert philox(ops, key, counter).tolist() == [list(out) for _, _, out in VECTORS]


def test_twins_agree(cpu: OpSet, reference: OpSet) -> None:
    gen = torch.Generator().manual_seed(0)
    for rows in (1, 63):
        key = torch.randint(0, 2**32, (rows, 2), generator=gen)
        counter = torch.randint(0, 2**32, (rows, 4), generator=gen)
        assert torch.equal(philox(cpu, key, counter), philox(reference, key, counter))


def test_uniform_depends_on_seed_index_and_sample_alone(ops: OpSet) -> None:
    seeds = torch.tensor([7, -1, 7, 7, 7 + 2**40])  # -1: the bits of 2⁶⁴ - 1
    indices, samples = torch.tensor([0, 0, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 0])
    drawn = uniform(ops, seeds, indices, samples)
    assert drawn.dtype == torch.float32
    assert len(set(drawn.tolist())) == 5
    for i in range(5):
        alone = uniform(ops, seeds[i : i + 1], indices[i : i + 1], samples[i : i + 1])
        assert alone.item() == drawn[i].item()


def test_uniform_is_uniform(ops: OpSet) -> None:
    count = 20_000
    drawn = uniform(ops, torch.full((count,), 3), torch.arange(count), torch.zeros(count, dtype=torch.int64))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = torch.histc(drawn, bins=20, min=0.0, max=1.0)
    chi_square = ((counts - count / 20) ** 2 / (count / 20)).sum().item()
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001
