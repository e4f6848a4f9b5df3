"""Norms, rotation and cache writes.

torch splits a big elementwise operation between threads at any element, and computes what is left over at a
split by scalar code. Addition, multiplication and division round alike in both; what does not is said in
`kernels.cpu.activation`. torch's norms run row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention import AttentionPlan, LayerCache, in_8_bits
from kernels.qkv import HeadNorm, Parts, Turn, by_parts


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.rms_norm`."""
    return torch.rms_norm(x.float(), x.shape[-1:], None, eps).mul_(weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.add_rms_norm`."""
    residual.add_(x)
    return torch.rms_norm(residual.float(), residual.shape[-1:], weight, eps).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.norm.layer_norm`."""
    if weight.dim() == 1:
        return torch.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)
    normed = torch.layer_norm(x.float(), x.shape[-1:], None, None, eps).mul_(weight)
    return (normed if bias is None else normed.add_(bias)).to(x.dtype)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.norm.add_layer_norm`."""
    residual.add_(x)
    return layer_norm(residual, weight, bias, eps)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary.rotary`."""
    half = cos.shape[1]
    first, second = x[..., :half], x[..., half : 2 * half]
    cos, sin = cos[:, None], sin[:, None]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.sub(first * cos, second * sin, out=out[..., :half])
    torch.add(second * cos, first * sin, out=out[..., half : 2 * half])
    if 2 * half < x.shape[2]:
        out[..., 2 * half :] = x[..., 2 * half :]
    return out


def store_kv(keys: Tensor, values: Tensor, cache: LayerCache, slot_mapping: Tensor) -> None:
    """See `kernels.attention.store_kv`."""
    parts = ((keys, cache.keys, cache.key_scales), (values, cache.values, cache.value_scales))
    for x, stored, scales in parts:
        if scales is not None:
            x, scale = in_8_bits(x, stored.dtype)
            scales.flatten(0, 1).index_copy_(0, slot_mapping, scale)
        stored.flatten(0, 1).index_copy_(0, slot_mapping, x.to(stored.dtype))


_PARTS = Parts(rms_norm, rotary, store_kv)


def rotate_and_store(
    qkv: Tensor, norm: HeadNorm | None, turn: Turn | None, plan: AttentionPlan, cache: LayerCache
) -> Tensor:
    """See `kernels.qkv.rotate_and_store`."""
    return by_parts(_PARTS, qkv, norm, turn, plan, cache)
