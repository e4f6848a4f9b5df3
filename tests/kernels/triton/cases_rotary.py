"""What the rotary embedding is tested and compiled with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kernels.triton.rotary import rotary
from tests.kernels.triton.device import DEVICE

SHAPES = [(1, 1, 2, 2), (3, 3, 20, 20), (5, 9, 64, 16), (2, 3, 63, 62), (2, 2, 8, 0), (3, 40, 128, 128)]
"""Tokens, heads, head_dim, and how many of its dimensions turn."""
if DEVICE == "cuda":
    SHAPES += [(2048, 32, 128, 128), (4096, 8, 80, 20)]


def inputs(
    tokens: int, heads: int, head_dim: int, turned: int, dtype: torch.dtype, device: str = DEVICE
) -> tuple[Tensor, Tensor, Tensor]:
    """x with strided rows, cosines and sines."""
    generator = torch.Generator(device).manual_seed(tokens + heads)
    x = torch.randn(tokens, heads + 2, head_dim, device=device, generator=generator).to(dtype)[:, :heads]
    angles = torch.randn(tokens, turned // 2, device=device, generator=generator) * 3
    return x, angles.cos(), angles.sin()


def _compiled(dtype: torch.dtype, *shape: int) -> None:
    rotary(*inputs(*shape, dtype=dtype, device="cpu"))


COMPILED: list[tuple[str, Callable[[], None]]] = [
    (f"rotary-{dtype}-{shape}", partial(_compiled, dtype, *shape))
    for dtype, shape in [
        (torch.bfloat16, (3, 32, 128, 128)),
        (torch.float16, (3, 8, 80, 20)),
        (torch.float32, (3, 16, 64, 64)),
        (torch.float32, (3, 3, 63, 62)),
    ]
]
