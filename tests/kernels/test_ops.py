"""Every operation of the cpu op set against its reference twin, on odd shapes."""

from __future__ import annotations

import pytest
import torch

from kernels.activation import act_and_mul
from kernels.attention import LayerCache, store_kv
from kernels.checks import FLOATS
from kernels.cpu import make_op_set
from kernels.cpu.paged import by_token
from kernels.linear import linear, pack_linear
from kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.opset import OpSet, load_op_set
from kernels.rotary import rotary

ROWS = (1, 2, 3, 17, 64, 129)
WIDTHS = (8, 63, 260, 1000)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_norms(rows: int, width: int, dtype: torch.dtype, cpu: OpSet, reference: OpSet) -> None:
    x = (normal(rows, width) + 0.5).to(dtype)
    weight, bias = normal(width, seed=1), normal(width, seed=2)
    for got, expected in (
        (rms_norm(cpu, x, weight, 1e-5), rms_norm(reference, x, weight, 1e-5)),
        (layer_norm(cpu, x, weight, bias, 1e-5), layer_norm(reference, x, weight, bias, 1e-5)),
        (layer_norm(cpu, x, weight, None, 1e-5), layer_norm(reference, x, weight, None, 1e-5)),
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_norms_per_head_of_strided_rows(dtype: torch.dtype, cpu: OpSet, reference: OpSet) -> None:
    x = normal(7, 9, 20).to(dtype)[:, :6]
    weight, bias = normal(6, 20, seed=1), normal(6, 20, seed=2)
    for got, expected in (
        (rms_norm(cpu, x, weight, 1e-6), rms_norm(reference, x, weight, 1e-6)),
        (layer_norm(cpu, x, weight, bias, 1e-6), layer_norm(reference, x, weight, bias, 1e-6)),
        (layer_norm(cpu, x, weight, None, 1e-6), layer_norm(reference, x, weight, None, 1e-6)),
    ):
        assert got.is_contiguous()
        torch.testing.assert_close(got, expected)


def test_norms_follow_their_formulas(reference: OpSet) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    weight, bias = torch.tensor([1.0, 2.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 10.0])
    torch.testing.assert_close(rms_norm(reference, x, weight, 2.0), x * weight / 14.5**0.5)
    expected = torch.tensor([[-2.0, -2.0, 0.0, 3.0]]) / 4**0.5 + bias  # mean 3, variance 3.5
    torch.testing.assert_close(layer_norm(reference, x, weight, bias, 0.5), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_norms_after_an_addition_update_the_residual(
    rows: int, dtype: torch.dtype, cpu: OpSet, reference: OpSet
) -> None:
    x, before = normal(rows, 63).to(dtype), normal(rows, 63, seed=2).to(dtype)
    weight, bias = normal(63, seed=1), normal(63, seed=3)

    def run(ops: OpSet) -> list[torch.Tensor]:
        residuals = [before.clone() for _ in range(3)]
        normed = [
            add_rms_norm(ops, x, residuals[0], weight, 1e-5),
            add_layer_norm(ops, x, residuals[1], weight, bias, 1e-5),
            add_layer_norm(ops, x, residuals[2], weight, None, 1e-5),
        ]
        for residual in residuals:
            assert torch.equal(residual, before + x)
        return normed

    for got, expected in zip(run(cpu), run(reference), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_that_is_not_finite_stays_alone(num_threads: int, cpu: OpSet) -> None:
    torch.set_num_threads(num_threads)
    x, weight, bias = normal(50, 1003), normal(1003, seed=1), normal(1003, seed=2)
    poisoned = x.clone()
    poisoned[7, 1002], poisoned[20, 0], poisoned[49, 500] = torch.nan, torch.inf, -torch.inf
    finite = poisoned.isfinite().all(1)

    def run(rows: torch.Tensor) -> list[torch.Tensor]:
        return [
            rms_norm(cpu, rows, weight, 1e-5),
            layer_norm(cpu, rows, weight, bias, 1e-5),
            add_rms_norm(cpu, rows, torch.zeros_like(rows), weight, 1e-5),
            add_layer_norm(cpu, torch.zeros_like(rows), rows.clone(), weight, bias, 1e-5),
        ]

    for got, clean in zip(run(poisoned), run(x), strict=True):
        assert torch.equal(got[finite], clean[finite])
        assert not got[~finite].isfinite().all(1).any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("head_dim", "turned"), [(2, 2), (20, 20), (64, 64), (20, 2), (64, 16), (63, 62), (8, 0)]
)
@pytest.mark.parametrize("rows", ROWS)
def test_rotary(
    rows: int, head_dim: int, turned: int, dtype: torch.dtype, cpu: OpSet, reference: OpSet
) -> None:
    x = normal(rows, 5, head_dim).to(dtype)[:, :3]
    angles = normal(rows, turned // 2, seed=1)
    got = rotary(cpu, x, angles.cos(), angles.sin())
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert torch.equal(got[..., turned:], x[..., turned:])
    torch.testing.assert_close(got, rotary(reference, x, angles.cos(), angles.sin()))


def test_rotary_keeps_lengths_and_turns_by_the_position(cpu: OpSet) -> None:
    x = normal(4, 1, 2)
    angles = torch.tensor([[0.0], [0.5], [1.0], [3.0]])
    turned = torch.view_as_complex(rotary(cpu, x, angles.cos(), angles.sin()))
    expected = torch.view_as_complex(x) * torch.exp(1j * angles)
    torch.testing.assert_close(turned, expected)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(8, 63), (63, 8), (256, 260), (1000, 17)])
@pytest.mark.parametrize("rows", ROWS)
def test_linear(rows: int, shape: tuple[int, int], with_bias: bool, cpu: OpSet, reference: OpSet) -> None:
    in_features, out_features = shape
    weight = normal(out_features, in_features) * 0.1
    bias = normal(out_features, seed=1) if with_bias else None
    x = normal(rows, in_features, seed=2)
    got = linear(cpu, x, pack_linear(cpu, weight, bias))
    assert got.shape == (rows, out_features)
    expected = linear(reference, x, pack_linear(reference, weight, bias))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_linear_in_half_precision(rows: int, dtype: torch.dtype, cpu: OpSet, reference: OpSet) -> None:
    weight, bias = (normal(63, 260) * 0.1).to(dtype), normal(63, seed=1).to(dtype)
    x = normal(rows, 260, seed=2).to(dtype)
    expected = x.float() @ weight.float().T + bias.float()
    for ops in (cpu, reference):
        got = linear(ops, x, pack_linear(ops, weight, bias))
        assert got.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got.float(), expected, rtol=2 * eps, atol=2 * eps)


def test_without_onednn_linear_layers_still_run_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = make_op_set(None)
    assert "run by F.linear" in caplog.text
    weight, x = normal(7, 5), normal(3, 5, seed=1)
    torch.testing.assert_close(linear(plain, x, pack_linear(plain, weight, None)), x @ weight.T)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_store_kv_writes_only_its_slots(dtype: torch.dtype, cpu: OpSet, reference: OpSet) -> None:
    keys, values = normal(5, 9, 8).to(dtype)[:, :3], normal(5, 3, 8, seed=1).to(dtype)
    slots = torch.tensor([4, 19, 7, 0, 12])
    caches = []
    for ops in (cpu, reference):
        k_cache, v_cache = (torch.full((5, 4, 3, 8), torch.nan, dtype=dtype) for _ in range(2))
        store_kv(ops, keys, values, LayerCache(k_cache, v_cache), slots)
        assert torch.isfinite(k_cache).sum() == keys.numel()
        written = LayerCache(k_cache, v_cache)
        written = by_token(written) if ops.stores_by_head else written
        caches.append((written.keys, written.values))
    for mine, theirs in zip(*caches, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=0, atol=0)


def test_wrappers_name_what_is_wrong(cpu: OpSet) -> None:
    with pytest.raises(AssertionError, match=r"weight: shape \(8,\), expected \(9,\)"):
        rms_norm(cpu, normal(3, 9), normal(8), 1e-5)
    with pytest.raises(AssertionError, match=r"x: torch\.float64, expected float32, bfloat16 or float16"):
        rms_norm(cpu, normal(3, 8).double(), normal(8), 1e-5)
    with pytest.raises(AssertionError, match=r"weight: torch\.bfloat16, expected torch\.float32"):
        rms_norm(cpu, normal(3, 8), normal(8).bfloat16(), 1e-5)
    with pytest.raises(AssertionError, match=r"bias: shape \(9,\), expected \(8,\)"):
        layer_norm(cpu, normal(3, 8), normal(8), normal(9), 1e-5)
    with pytest.raises(AssertionError, match="cos: 5 pairs in a head_dim of 8"):
        rotary(cpu, normal(3, 2, 8), normal(3, 5), normal(3, 5))
    with pytest.raises(AssertionError, match=r"gate_up: strides .*expected contiguous"):
        act_and_mul(cpu, normal(3, 16)[:, :8], "silu")
    with pytest.raises(AssertionError, match="x: last dimension is strided"):
        rms_norm(cpu, normal(8, 3).T, normal(8), 1e-5)


def test_unknown_op_set_is_named() -> None:
    with pytest.raises(ValueError, match="no op set 'cuda'"):
        load_op_set("cuda")
