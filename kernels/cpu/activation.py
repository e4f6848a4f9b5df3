"""Activations of an MLP, built from operations that are one code path for every element.

torch computes what is left over at the end of a vector, or of a thread's share, by scalar code. For sigmoid,
silu and both forms of gelu that rounds differently (seen: silu of rows of 688 columns differs from 51 rows
on, gelu_tanh at most sizes), so a row would depend on its batch. exp, erf and tanh are vector code
throughout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.activation import Activation


def act_and_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """See `kernels.activation.act_and_mul`."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return _activate(gate, activation).mul_(up).to(gate_up.dtype)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """See `kernels.activation.activate`."""
    return _activate(x.float(), activation).to(x.dtype)


def _activate(x: Tensor, activation: Activation) -> Tensor:
    """Returns a new contiguous tensor. x: float32, rows may be strided."""
    match activation:
        case "silu":
            out = torch.neg(x).exp_().add_(1.0)
            return torch.div(x, out, out=out)
        case "gelu":
            return torch.mul(x, math.sqrt(0.5)).erf_().add_(1.0).mul_(x).mul_(0.5)
        case "gelu_tanh":
            out = torch.mul(x, x).mul_(0.044715).add_(1.0).mul_(x).mul_(math.sqrt(2 / math.pi))
            return out.tanh_().add_(1.0).mul_(x).mul_(0.5)
        case "relu":
            return torch.relu(x)
