"""Every way of packing a linear layer against float64, also those that a processor has no instruction for."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.cpu import native
from kernels.cpu.calls import Calls
from kernels.cpu.native.build import FLAGS, FOLDER
from kernels.cpu.packed import PackedLinear
from kernels.linear import LinearWeight

SIZES = [(1, 1), (5, 33), (31, 64), (64, 65), (70, 200), (33, 1027)]
"""Outputs and inputs: whole panels and units, and not."""
STORED = [torch.float32, torch.bfloat16, torch.float16, torch.int8]


def compiled(folder: Path, *options: str) -> ctypes.CDLL:
    """Linear layers alone, at once rather than well."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    path = folder / "linear.so"
    flags = ["-O1", *(flag for flag in FLAGS if flag != "-O3"), *options, "-shared"]
    subprocess.run([compiler, *flags, str(FOLDER / "linear.cpp"), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library with float16 arithmetic lane by lane, which the compiler makes of float32's."""
    return compiled(tmp_path_factory.mktemp("native"), "-march=x86-64-v3", "-DPENSTOCK_EMULATE_FLOAT16")


def operands(outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(outputs + inputs)
    weight = torch.randn(outputs, inputs, generator=gen) * inputs**-0.5
    bias = torch.randn(outputs, generator=gen)
    x = torch.randn(29, inputs, generator=gen)
    x[3] = 0  # whose scale is nothing
    x[4] *= 1e6
    x[5] *= 1e-6
    return weight, bias, x


def error(linears: PackedLinear, weight: LinearWeight, of: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Of each row, relative to the length of its products."""
    dense, bias, x = (part.double() for part in of)
    products = x @ dense.T
    got = linears.run(of[2], weight).double() - bias
    return (got - products).norm(dim=1) / products.norm(dim=1).clamp(min=1e-30)


def limit(stored: torch.dtype, bias: Tensor, x: Tensor) -> Tensor:
    """Of a row's error: rounding of the factors and of float16 sums, and what adding the bias rounds off."""
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-8, torch.int8: 0.03}[stored]
    return rounding + 1e-6 * bias.norm() / x.norm(dim=1).clamp(min=1e-7)


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_close_to_float64(size: tuple[int, int], stored: torch.dtype) -> None:
    library = native.load()
    assert library is not None, "the C++ kernels are not built: make test builds them"
    of = operands(*size)
    linears = PackedLinear(Calls(library), stored)
    rows = [row for row in range(29) if row != 3]
    off = error(linears, linears.pack(of[0], of[1]), of)
    assert (off[rows] <= limit(stored, of[1], of[2])[rows]).all(), off


@pytest.mark.parametrize("stored", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float16_products_and_bytes_without_their_instructions(
    size: tuple[int, int], stored: torch.dtype, emulated: ctypes.CDLL
) -> None:
    of = operands(*size)
    linears = PackedLinear(Calls(emulated), stored)
    weight = linears.pack(of[0], of[1])
    rows = [row for row in range(29) if row != 3]
    off = error(linears, weight, of)
    assert (off[rows] <= limit(stored, of[1], of[2])[rows]).all(), off
    alone = torch.cat([linears.run(row[None], weight) for row in of[2]])
    assert torch.equal(alone, linears.run(of[2], weight)), "a row depends on the rows beside it"


def test_bytes_are_exact_sums(emulated: ctypes.CDLL) -> None:
    """So every target gives the same: here that of the processor, and AVX2's way."""
    library = native.load()
    assert library is not None, "the C++ kernels are not built: make test builds them"
    weight, bias, x = operands(70, 1000)
    results = []
    for one in (library, emulated):
        linears = PackedLinear(Calls(one), torch.int8)
        results.append(linears.run(x, linears.pack(weight, bias)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [16, 64])
def test_registers_of_another_width_give_the_same(width: int, tmp_path: Path) -> None:
    """Vectors that are halves of halves, and tiles as AVX-512 has them, without its instructions."""
    library = native.load()
    assert library is not None, "the C++ kernels are not built: make test builds them"
    other = compiled(tmp_path, f"-DPENSTOCK_REGISTER={width}", "-march=x86-64-v2", "-mavx", "-mfma")
    weight, bias, x = operands(70, 203)
    for stored in (torch.float32, torch.int8):
        linears = [PackedLinear(Calls(one), stored) for one in (library, other)]
        expected, found = (one.run(x, one.pack(weight, bias)) for one in linears)
        assert ((found - expected).norm(dim=1) <= 1e-6 * expected.norm(dim=1)).all()


def test_the_target_can_be_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    load = native.load.__wrapped__
    monkeypatch.setenv("PENSTOCK_CPU_TARGET", "avx2")
    library = load()
    assert library is not None
    assert Path(library._name).name == "native_avx2.so"
    monkeypatch.setenv("PENSTOCK_CPU_TARGET", "z80")
    assert load() is None
    assert "this processor does not run 'z80'" in caplog.text


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_anywhere_in_a_row_shows_in_all_of_its_outputs(
    value: float, stored: torch.dtype
) -> None:
    """Or a broken row would go on with tokens that look sound."""
    library = native.load()
    assert library is not None, "the C++ kernels are not built: make test builds them"
    linears = PackedLinear(Calls(library), stored)
    weight, bias, _ = operands(33, 67)
    packed = linears.pack(weight, bias)
    x = torch.randn(68, 67, generator=torch.Generator().manual_seed(1))
    sound = linears.run(x, packed)
    broken = x.clone()
    broken[range(67), range(67)] = value
    broken[:, 11] *= 1000  # which a NaN behind it must not hide
    got = linears.run(broken, packed)
    assert not got[:67].isfinite().any(dim=1).any()
    assert torch.equal(got[67], linears.run(broken[67:], packed)[0])
    assert sound.isfinite().all()


def test_a_weight_that_is_no_number_is_not_hidden_by_8_bits() -> None:
    library = native.load()
    assert library is not None, "the C++ kernels are not built: make test builds them"
    linears = PackedLinear(Calls(library), torch.int8)
    weight, bias, x = operands(33, 67)
    weight[5, 3] = float("nan")
    got = linears.run(x, linears.pack(weight, bias))
    assert not got[:, 5].isfinite().any()
    assert got[:, :5].isfinite().all()


def test_rows_of_next_to_nothing_stay_numbers() -> None:
    library = native.load()
    assert library is not None, "the C++ kernels are not built: make test builds them"
    linears = PackedLinear(Calls(library), torch.int8)
    weight, bias, x = operands(33, 67)
    scales = torch.tensor([1e-30, 1e-36, 1e-37, 1e-40, 0.0])
    got = linears.run(x[:1] / x[0].abs().max() * scales[:, None], linears.pack(weight * 1e-37, bias))
    assert torch.allclose(got, bias.expand_as(got))


def test_sums_of_8_bits_that_could_overflow_are_taken_in_16() -> None:
    library = native.load()
    assert library is not None, "the C++ kernels are not built: make test builds them"
    linears = PackedLinear(Calls(library), torch.int8)
    x = torch.ones(1, 66_400)
    packed = linears.pack(torch.ones(1, 66_400), None)
    assert abs(linears.run(x, packed).item() / 66_400 - 1) < 0.01
