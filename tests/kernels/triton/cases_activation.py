"""What the activations are tested and compiled with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from kernels.activation import Activation
from kernels.checks import FLOATS
from kernels.triton.activation import act_and_mul, activate
from tests.kernels.triton.device import DEVICE

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

SHAPES = [(1, 1), (2, 63), (17, 260), (3, 1025)]
"""Rows and width, for the interpreter; the others fill a GPU."""
if DEVICE == "cuda":
    SHAPES += [(1, 14336), (256, 3072), (4096, 14336)]


def inputs(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return (torch.randn(rows, columns, device=DEVICE, generator=generator) * 5).to(dtype)


def _compiled(gated: bool, activation: Activation, dtype: torch.dtype) -> None:
    (act_and_mul if gated else activate)(torch.zeros(3, 512, dtype=dtype), activation)


COMPILED: list[tuple[str, Callable[[], None]]] = [
    (
        f"{'act_and_mul' if gated else 'activate'}-{activation}-{dtype}",
        partial(_compiled, gated, activation, dtype),
    )
    for gated, activation, dtype in [
        *((True, activation, torch.bfloat16) for activation in ACTIVATIONS),
        *((False, activation, torch.bfloat16) for activation in ("gelu", "relu")),
        *((True, "silu", dtype) for dtype in FLOATS if dtype != torch.bfloat16),
        *((False, "gelu_tanh", dtype) for dtype in FLOATS if dtype != torch.bfloat16),
    ]
]
