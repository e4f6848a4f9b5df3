"""Mixture of experts: a router picks k of E gated MLPs for each token, and their outputs are added up.

Shazeer et al., "Outrageously Large Neural Networks", 2017; the softmax before the choice as in Mixtral and
Qwen3-MoE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.activation import Activation
from kernels.checks import check, check_contiguous, check_float
from kernels.linear import LinearWeight

if TYPE_CHECKING:
    from kernels.opset import OpSet


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The experts of one layer, packed by one op set: only that op set reads `gate_up` and `down`."""

    gate_up: tuple[LinearWeight, ...]
    """[2·I, H] of each expert, gate first; or one weight that holds all of them."""
    down: tuple[LinearWeight, ...]
    """[H, I] of each expert, likewise."""
    activation: Activation
    num_experts: int
    hidden_size: int
    dtype: torch.dtype
    device: torch.device


def pack_experts(ops: OpSet, gate_up: Tensor, down: Tensor, activation: Activation) -> ExpertWeights:
    """Takes gate_up [E, 2·I, H] and down [E, H, I], both contiguous; the result may share their memory."""
    check("gate_up", gate_up, (None, None, None), gate_up.dtype, gate_up.device)
    check_float("gate_up", gate_up)
    check_contiguous("gate_up", gate_up)
    num_experts, width, hidden_size = gate_up.shape
    assert width % 2 == 0, f"gate_up: {width} rows of an expert, expected an even number"
    check("down", down, (num_experts, hidden_size, width // 2), gate_up.dtype, gate_up.device)
    check_contiguous("down", down)
    return ops.pack_experts(gate_up, down, activation)


def route(ops: OpSet, router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The `top_k` most probable experts of each token; of equals, the lower id first.

    router_logits: [T, E]. Returns their probabilities (softmax over all E; divided by their sum where
    `renormalize`) [T, top_k] float32, falling, and their ids [T, top_k] int64.
    """
    check("router_logits", router_logits, (None, None), router_logits.dtype, router_logits.device)
    check_float("router_logits", router_logits)
    num_experts = router_logits.shape[1]
    assert 1 <= top_k <= num_experts, f"top_k {top_k}, expected 1 to {num_experts}"
    return ops.route(router_logits, top_k, renormalize)


def moe(ops: OpSet, x: Tensor, weights: Tensor, ids: Tensor, experts: ExpertWeights) -> Tensor:
    """Σ weight · down(activation(gate) · up) over each token's experts, added in order of expert id.

    x: [T, H] contiguous; weights: [T, k] float32; ids: [T, k] int64, each row's different. Returns a new
    contiguous [T, H] of x's dtype.
    """
    check("x", x, (None, experts.hidden_size), x.dtype, experts.device)
    check_float("x", x)
    check_contiguous("x", x)
    check("weights", weights, (x.shape[0], None), torch.float32, x.device)
    check("ids", ids, tuple(weights.shape), torch.int64, x.device)
    return ops.moe(x, weights, ids, experts)
