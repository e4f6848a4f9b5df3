"""What stands between the product that makes queries, keys and values, and attention: the norm of each head
(Qwen3), the rotation of queries and keys, and the store of keys and values, in one pass over them.

See `kernels.norm.rms_norm`, `kernels.rotary.rotary` and `kernels.attention.store_kv`, which give the same one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.attention import AttentionPlan, LayerCache, check_cache
from kernels.checks import check, check_contiguous, check_float

if TYPE_CHECKING:
    from kernels.opset import OpSet


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """A root mean square norm of every head of the queries and keys."""

    weight: Tensor
    """[heads + kv_heads, D] float32, contiguous."""
    eps: float


@dataclass(frozen=True, slots=True)
class Turn:
    """By which angles each token's heads turn."""

    cos: Tensor
    """[T, R/2] float32, R ≤ D."""
    sin: Tensor
    """Likewise."""


def rotate_and_store(
    ops: OpSet,
    qkv: Tensor,
    norm: HeadNorm | None,
    turn: Turn | None,
    plan: AttentionPlan,
    cache: LayerCache,
) -> Tensor:
    """Norms and turns queries and keys, writes keys and values to the slots of the plan's metadata.

    qkv: [T, (heads + 2 · kv_heads) · D] contiguous: all heads of queries, then of keys, then of values.
    Returns the queries, a new contiguous [T, heads, D].
    """
    shape, num_tokens = plan.shape, plan.metadata.slot_mapping.shape[0]
    num_turned = shape.num_heads + shape.num_kv_heads
    width = (num_turned + shape.num_kv_heads) * shape.head_dim
    check("qkv", qkv, (num_tokens, width), qkv.dtype, qkv.device)
    check_float("qkv", qkv)
    check_contiguous("qkv", qkv)
    if norm is not None:
        check("weight", norm.weight, (num_turned, shape.head_dim), torch.float32, qkv.device)
        check_contiguous("weight", norm.weight)
    if turn is not None:
        half = turn.cos.shape[1]
        assert 2 * half <= shape.head_dim, f"cos: {half} pairs in a head_dim of {shape.head_dim}"
        for name, table in (("cos", turn.cos), ("sin", turn.sin)):
            check(name, table, (num_tokens, half), torch.float32, qkv.device)
            check_contiguous(name, table)
    check_cache(cache, (None, plan.metadata.block_size, shape.num_kv_heads, shape.head_dim), qkv)
    return ops.rotate_and_store(qkv, norm, turn, plan, cache)


@dataclass(frozen=True, slots=True)
class Parts:
    """An op set's operations that `by_parts` puts together."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    store_kv: Callable[[Tensor, Tensor, LayerCache, Tensor], None]


def by_parts(
    parts: Parts,
    qkv: Tensor,
    norm: HeadNorm | None,
    turn: Turn | None,
    plan: AttentionPlan,
    cache: LayerCache,
) -> Tensor:
    """`rotate_and_store` by three operations, one after the other."""
    shape = plan.shape
    num_turned = shape.num_heads + shape.num_kv_heads
    heads = qkv.view(qkv.shape[0], -1, shape.head_dim)
    qk, values = heads[:, :num_turned], heads[:, num_turned:]
    if norm is not None:
        qk = parts.rms_norm(qk, norm.weight, norm.eps)
    if turn is not None:
        qk = parts.rotary(qk, turn.cos, turn.sin)
    parts.store_kv(qk[:, shape.num_heads :], values, cache, plan.metadata.slot_mapping)
    return qk[:, : shape.num_heads].contiguous()
