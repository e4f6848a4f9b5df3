"""The norm of each head, rotation, and cache writes in C++, in one pass over what the projections gave.

In float32, which is what activations are with the library; anything else goes the way of plain torch.
See kernels/cpu/native/heads.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention import AttentionPlan, LayerCache
from kernels.cpu import elementwise
from kernels.cpu.calls import Calls, Function
from kernels.cpu.native import TYPES
from kernels.cpu.native.structs import HEADS
from kernels.qkv import HeadNorm, Parts, Turn, by_parts


@dataclass(frozen=True, slots=True)
class Heads:
    """What happens to heads before attention, by a library."""

    calls: Calls

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See `kernels.rotary.rotary`."""
        if x.dtype != torch.float32:
            return elementwise.rotary(x, cos, sin)
        rows, heads, head_dim = x.shape
        cos, sin = cos.contiguous(), sin.contiguous()
        out = torch.empty((rows, heads, head_dim), dtype=torch.float32)
        self.calls.make(
            Function.HEADS,
            HEADS.pack(
                *(x.data_ptr(), 0, 0, 0, cos.data_ptr(), sin.data_ptr(), 0, out.data_ptr(), 0, 0, 0, 0),
                *(x.stride(0), 0, 0, rows, heads, 0, head_dim, cos.shape[1], 0, 1, 0.0),
            ),
        )
        return out

    def store_kv(self, keys: Tensor, values: Tensor, cache: LayerCache, slot_mapping: Tensor) -> None:
        """See `kernels.attention.store_kv`."""
        rows, kv_heads, head_dim = keys.shape
        keys, values = keys.float(), values.float()
        keys = keys if keys.stride(1) == head_dim else keys.contiguous()
        values = values if values.stride(1) == head_dim else values.contiguous()
        self.calls.make(
            Function.HEADS,
            HEADS.pack(
                *(0, keys.data_ptr(), values.data_ptr(), 0, 0, 0, slot_mapping.data_ptr(), 0),
                *(cache.keys.data_ptr(), cache.values.data_ptr(), *cache.scale_pointers()),
                *(0, keys.stride(0), values.stride(0)),
                *(rows, 0, kv_heads, head_dim, 0, TYPES[cache.keys.dtype], cache.keys.shape[1], 0.0),
            ),
        )

    def rotate_and_store(
        self, qkv: Tensor, norm: HeadNorm | None, turn: Turn | None, plan: AttentionPlan, cache: LayerCache
    ) -> Tensor:
        """See `kernels.qkv.rotate_and_store`."""
        if qkv.dtype != torch.float32:
            parts = Parts(elementwise.rms_norm, elementwise.rotary, self.store_kv)
            return by_parts(parts, qkv, norm, turn, plan, cache)
        shape = plan.shape
        heads, kv_heads, head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        rows, stride = qkv.shape
        out = torch.empty((rows, heads, head_dim), dtype=torch.float32)
        queries = qkv.data_ptr()
        keys = queries + heads * head_dim * 4
        self.calls.make(
            Function.HEADS,
            HEADS.pack(
                *(queries, keys, keys + kv_heads * head_dim * 4),
                0 if norm is None else norm.weight.data_ptr(),
                *((0, 0) if turn is None else (turn.cos.data_ptr(), turn.sin.data_ptr())),
                *(plan.metadata.slot_mapping.data_ptr(), out.data_ptr()),
                *(cache.keys.data_ptr(), cache.values.data_ptr(), *cache.scale_pointers()),
                *(stride, stride, stride),
                *(rows, heads, kv_heads, head_dim, 0 if turn is None else turn.cos.shape[1]),
                *(TYPES[cache.keys.dtype], cache.keys.shape[1], 0.0 if norm is None else norm.eps),
            ),
        )
        return out
