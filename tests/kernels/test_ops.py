"""Every operation of the cpu op set against its reference twin, on odd shapes."""

from __future__ import annotations

import pytest
import torch

from kernels.activation import act_and_mul
from kernels.attention import store_kv
from kernels.linear import linear, pack_linear
from kernels.norm import add_rms_norm, rms_norm
from kernels.opset import OpSet, load_op_set
from kernels.rotary import rotary

ROWS = (1, 2, 3, 17, 64, 129)
WIDTHS = (8, 63, 260, 1000)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_rms_norm(rows: int, width: int, cpu: OpSet, reference: OpSet) -> None:
    x, weight = normal(rows, width), normal(width, seed=1)
    torch.testing.assert_close(rms_norm(cpu, x, weight, 1e-5), rms_norm(reference, x, weight, 1e-5))


def test_rms_norm_per_head_of_strided_rows(cpu: OpSet, reference: OpSet) -> None:
    x = normal(7, 9, 20)[:, :6]
    weight = normal(6, 20, seed=1)
    got = rms_norm(cpu, x, weight, 1e-6)
    assert got.is_contiguous()
    torch.testing.assert_close(got, rms_norm(reference, x, weight, 1e-6))


@pytest.mark.parametrize("rows", ROWS)
def test_add_rms_norm_updates_the_residual(rows: int, cpu: OpSet, reference: OpSet) -> None:
    x, weight = normal(rows, 63), normal(63, seed=1)
    mine, theirs = normal(rows, 63, seed=2), normal(rows, 63, seed=2)
    got = add_rms_norm(cpu, x, mine, weight, 1e-5)
    torch.testing.assert_close(got, add_rms_norm(reference, x, theirs, weight, 1e-5))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("head_dim", [2, 20, 64])
@pytest.mark.parametrize("rows", ROWS)
def test_rotary(rows: int, head_dim: int, cpu: OpSet, reference: OpSet) -> None:
    x = normal(rows, 5, head_dim)[:, :3]
    angles = normal(rows, head_dim // 2, seed=1)
    got = rotary(cpu, x, angles.cos(), angles.sin())
    assert got.is_contiguous()
    torch.testing.assert_close(got, rotary(reference, x, angles.cos(), angles.sin()))


def test_rotary_keeps_lengths_and_turns_by_the_position(cpu: OpSet) -> None:
    x = normal(4, 1, 2)
    angles = torch.tensor([[0.0], [0.5], [1.0], [3.0]])
    turned = torch.view_as_complex(rotary(cpu, x, angles.cos(), angles.sin()))
    expected = torch.view_as_complex(x) * torch.exp(1j * angles)
    torch.testing.assert_close(turned, expected)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_silu_and_mul(rows: int, width: int, cpu: OpSet, reference: OpSet) -> None:
    gate_up = normal(rows, 2 * width) * 10
    torch.testing.assert_close(act_and_mul(cpu, gate_up, "silu"), act_and_mul(reference, gate_up, "silu"))


def test_silu_of_extreme_values_is_finite(cpu: OpSet) -> None:
    gate_up = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0, 100.0, 1e4]])
    torch.testing.assert_close(act_and_mul(cpu, gate_up, "silu"), expected)


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


def test_without_onednn_linear_layers_still_run_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = load_op_set("cpu")
    assert "run by F.linear" in caplog.text
    weight, x = normal(7, 5), normal(3, 5, seed=1)
    torch.testing.assert_close(linear(plain, x, pack_linear(plain, weight, None)), x @ weight.T)


def test_store_kv_writes_only_its_slots(cpu: OpSet, reference: OpSet) -> None:
    keys, values = normal(5, 9, 8)[:, :3], normal(5, 3, 8, seed=1)
    slots = torch.tensor([4, 19, 7, 0, 12])
    caches = []
    for ops in (cpu, reference):
        k_cache, v_cache = (torch.full((5, 4, 3, 8), torch.nan) for _ in range(2))
        store_kv(ops, keys, values, k_cache, v_cache, slots)
        assert torch.isfinite(k_cache).sum() == keys.numel()
        caches.append((k_cache, v_cache))
    for mine, theirs in zip(*caches, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=0, atol=0)


def test_wrappers_name_what_is_wrong(cpu: OpSet) -> None:
    with pytest.raises(AssertionError, match=r"weight: shape \(8,\), expected \(9,\)"):
        rms_norm(cpu, normal(3, 9), normal(8), 1e-5)
    with pytest.raises(AssertionError, match=r"x: torch\.float64, expected float32, bfloat16 or float16"):
        rms_norm(cpu, normal(3, 8).double(), normal(8), 1e-5)
    with pytest.raises(AssertionError, match=r"gate_up: strides .*expected contiguous"):
        act_and_mul(cpu, normal(3, 16)[:, :8], "silu")
    with pytest.raises(AssertionError, match="x: last dimension is strided"):
        rms_norm(cpu, normal(8, 3).T, normal(8), 1e-5)


def test_unknown_op_set_is_named() -> None:
    with pytest.raises(ValueError, match="no op set 'cuda'"):
        load_op_set("cuda")
