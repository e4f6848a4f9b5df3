"""What the norms are tested and compiled with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels.triton.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tests.kernels.triton.device import DEVICE


@dataclass(frozen=True)
class Inputs:
    """x and the residual of the activations' dtype; weight and bias float32."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor


ROWS_AND_WIDTHS = [(1, 1), (3, 63), (17, 8), (5, 1000), (2, 4096), (1, 16384), (2, 20000)]
"""For the interpreter; the others fill a GPU."""
PER_HEAD = [(1, 1, 64), (7, 6, 20), (3, 9, 128)]
"""Tokens, heads, head_dim."""
if DEVICE == "cuda":
    ROWS_AND_WIDTHS += [(1, 4096), (256, 1024), (4096, 4096), (129, 16384)]
    PER_HEAD += [(2048, 16, 128), (4096, 8, 96)]


def inputs(*shape: int, dtype: torch.dtype, device: str = DEVICE) -> Inputs:
    """The rows of x are strided, with NaN between them; its mean is not 0."""
    generator = torch.Generator(device).manual_seed(sum(shape))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    room = torch.full((*shape[:-2], shape[-2] + 3, shape[-1]), torch.nan, dtype=dtype, device=device)
    if len(shape) == 2:
        room = torch.full((shape[0], shape[1] + 16), torch.nan, dtype=dtype, device=device)
    x = room[:, : shape[1]]
    x.copy_(normal(*shape) + 0.5)
    return Inputs(x, (normal(*shape) * 2).to(dtype), normal(*shape[1:]), normal(*shape[1:]))


def _compiled(name: str, dtype: torch.dtype, *shape: int) -> None:
    case = inputs(*shape, dtype=dtype, device="cpu")
    match name:
        case "rms_norm":
            rms_norm(case.x, case.weight, 1e-6)
        case "add_rms_norm":
            add_rms_norm(case.x, case.residual, case.weight, 1e-6)
        case "layer_norm":
            layer_norm(case.x, case.weight, case.bias, 1e-6)
        case _:
            add_layer_norm(case.x, case.residual, case.weight, None, 1e-6)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
COMPILED: list[tuple[str, Callable[[], None]]] = [
    (f"{name}-{dtype}-{shape}", partial(_compiled, name, dtype, *shape))
    for name, dtype, shape in [
        ("rms_norm", BF16, (3, 1024)),
        ("rms_norm", FP16, (3, 4, 128)),
        ("rms_norm", FP32, (3, 5, 80)),
        ("add_rms_norm", BF16, (3, 4096)),
        ("add_rms_norm", FP16, (3, 16384)),
        ("add_rms_norm", FP32, (3, 16384)),
        ("add_rms_norm", FP32, (3, 63)),
        ("add_rms_norm", BF16, (3, 20480)),
        ("layer_norm", FP16, (3, 768)),
        ("layer_norm", BF16, (3, 4, 64)),
        ("layer_norm", FP32, (3, 20480)),
        ("add_layer_norm", BF16, (3, 2048)),
        ("add_layer_norm", FP32, (3, 8192)),
        ("add_layer_norm", FP16, (3, 20480)),
    ]
]
