"""Norms, rotation, gate and cache writes.

torch splits a big elementwise operation between threads at any element, and computes what is left over at a
split by scalar code. Addition, multiplication and division round alike in both; sigmoid and silu do not
(seen: rows of 688 columns differ from 51 rows on), so the gate is built from exp, which is one code path for
all.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.rms_norm`."""
    return torch.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.add_rms_norm`."""
    residual.add_(x)
    return torch.rms_norm(residual, residual.shape[-1:], weight, eps)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary.rotary`."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None], sin[:, None]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.sub(first * cos, second * sin, out=out[..., :half])
    torch.add(second * cos, first * sin, out=out[..., half:])
    return out


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `kernels.activation.silu_and_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.neg(gate).exp_().add_(1.0)
    return torch.div(gate, out, out=out).mul_(up)


def store_kv(keys: Tensor, values: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `kernels.attention.store_kv`."""
    k_cache.flatten(0, 1).index_copy_(0, slot_mapping, keys)
    v_cache.flatten(0, 1).index_copy_(0, slot_mapping, values)
