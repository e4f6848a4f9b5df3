"""See `kernels.moe`. Four launches: sort pairs into tiles, two grouped products, one sum for each token.

Sizes are of what the host knows, so this can be recorded in a CUDA graph. Few tokens are bound by reading the
weights of the experts they picked, many by arithmetic.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# pyright: reportArgumentType=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activation import Activation
from kernels.linear import LinearWeight
from kernels.moe import ExpertWeights
from kernels.triton.moe_product import grouped_product, rows_of
from kernels.triton.moe_route import route
from kernels.triton.moe_tiles import sort_into_tiles

__all__ = ["moe", "pack_experts", "route"]

COLUMNS: Final = 1024
"""Of a program of the sum: a 16-byte load of each expert's output for every thread of 4 warps."""


def pack_experts(gate_up: Tensor, down: Tensor, activation: Activation) -> ExpertWeights:
    """See `kernels.moe.pack_experts`: the two tensors as they are, one weight each."""
    num_experts, width, hidden_size = gate_up.shape
    dtype, device = gate_up.dtype, gate_up.device
    return ExpertWeights(
        gate_up=(LinearWeight(gate_up, None, hidden_size, width, dtype, device),),
        down=(LinearWeight(down, None, width // 2, hidden_size, dtype, device),),
        activation=activation,
        num_experts=num_experts,
        hidden_size=hidden_size,
        dtype=dtype,
        device=device,
    )


def moe(x: Tensor, weights: Tensor, ids: Tensor, experts: ExpertWeights) -> Tensor:
    """See `kernels.moe.moe`. An expert's output is rounded to x's dtype, the sum is of float32."""
    num_tokens, hidden_size = x.shape
    out = torch.empty_like(x)
    if num_tokens == 0:
        return out
    weights, ids, top_k = weights.contiguous(), ids.contiguous(), ids.shape[1]
    tiles = sort_into_tiles(ids, experts.num_experts, rows_of(ids.numel(), experts.num_experts, x.dtype))
    hidden = grouped_product(x, experts.gate_up[0].data, tiles, top_k, experts.activation)
    outputs = grouped_product(hidden, experts.down[0].data, tiles, 1, None)
    _sum_kernel[(num_tokens, triton.cdiv(hidden_size, COLUMNS))](
        outputs,
        weights,
        ids,
        out,
        hidden_size,
        TOP_K=top_k,
        CHOICES=1 << (top_k - 1).bit_length(),
        COLUMNS=COLUMNS,
    )
    return out


@triton.jit
def _sum_kernel(
    outputs,
    weights,
    ids,
    out,
    hidden_size,
    TOP_K: tl.constexpr,
    CHOICES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < hidden_size
    choices = tl.arange(0, CHOICES)
    picked = choices < TOP_K
    # Above every expert, and each different.
    beyond = 2147483647 - choices
    experts = tl.load(ids + token * TOP_K + choices, mask=picked, other=0)
    experts = tl.where(picked, experts.to(tl.int32), beyond)
    factors = tl.load(weights + token * TOP_K + choices, mask=picked, other=0.0)
    left = picked
    total = tl.zeros((COLUMNS,), tl.float32)
    for _ in tl.static_range(TOP_K):
        lowest = tl.min(tl.where(left, experts, 2147483647), axis=0)
        choice = tl.sum(tl.where(experts == lowest, choices, 0), axis=0)
        factor = tl.sum(tl.where(experts == lowest, factors, 0.0), axis=0)
        left = left & (experts != lowest)
        y = tl.load(outputs + (token * TOP_K + choice) * hidden_size + columns, mask=inside, other=0.0)
        total += factor * y.to(tl.float32)
    tl.store(out + token * hidden_size + columns, total.to(out.dtype.element_ty), mask=inside)
