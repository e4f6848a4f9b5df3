"""See `kernels.activation`. Bound by memory: 3·I elements of each row where gated, else 2·I."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportArgumentType=false
# Parameters of a kernel are values of Triton's without a useful type.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activation import Activation

BLOCK = 1024
"""Columns of a program: with Triton's 4 warps, a 16-byte load of each operand for every thread."""


def act_and_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """See `kernels.activation.act_and_mul`."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() > 0:
        grid = (num_tokens, triton.cdiv(width, BLOCK))
        _act_and_mul_kernel[grid](gate_up, out, width, ACTIVATION=activation, BLOCK=BLOCK)
    return out


def activate(x: Tensor, activation: Activation) -> Tensor:
    """See `kernels.activation.activate`."""
    out = torch.empty_like(x)
    if out.numel() > 0:
        grid = (x.shape[0], triton.cdiv(x.shape[1], BLOCK))
        _activate_kernel[grid](x, out, x.shape[1], ACTIVATION=activation, BLOCK=BLOCK)
    return out


@triton.jit
def _act_and_mul_kernel(gate_up, out, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = gate_up + row * 2 * width + columns
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    y = activated(gate, ACTIVATION) * up
    tl.store(out + row * width + columns, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _activate_kernel(x, out, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    # By rows: only of a width that Triton knows to be a multiple of 16 it makes 16-byte loads under a mask.
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    places = tl.program_id(0).to(tl.int64) * width + columns
    y = activated(tl.load(x + places, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    tl.store(out + places, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """activation(x), x float32. Exponents are of what cannot overflow into NaN: at worst 1 / inf = 0."""
    if ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # x/2 · (1 + tanh(u)) is x / (1 + exp(-2u)).
        y = x / (1.0 + tl.exp(-1.5957691216057308 * x * (1.0 + 0.044715 * x * x)))
    else:
        y = tl.where(x < 0.0, 0.0, x)  # NaN stays
    return y
