"""What routing and experts are tested and compiled with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels.activation import Activation
from kernels.triton.moe import moe, pack_experts, route
from tests.kernels.triton.device import DEVICE

ROUTES = [(1, 1, 1), (77, 8, 2), (5, 63, 7), (3, 256, 8)]
"""Tokens, experts, of which picked."""


@dataclass(frozen=True)
class Size:
    """E experts of which k are picked, of H inputs and I between."""

    experts: int
    top_k: int
    hidden: int
    width: int


SIZES = [Size(2, 1, 8, 4), Size(8, 2, 63, 20), Size(5, 5, 20, 63), Size(60, 4, 36, 12)]
CASES = [(size, rows) for size in SIZES for rows in (1, 3, 17)]
if DEVICE == "cuda":
    ROUTES += [(4096, 128, 8), (1000, 8, 2)]
    CASES += [(size, rows) for size in SIZES for rows in (130, 600)]
    # Shares of 16, 32, 64 and 128 rows of an expert, each with its own blocks.
    CASES += [(Size(32, 4, 512, 384), rows) for rows in (1, 100, 200, 400, 3000)]
    CASES += [(Size(128, 8, 2048, 768), 64), (Size(8, 2, 1024, 3584), 1000)]


def normal(*shape: int, seed: int = 0, device: str = DEVICE) -> Tensor:
    return torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(seed))


@dataclass(frozen=True)
class Inputs:
    """As `kernels.moe` names them; each row's ids in no particular order."""

    x: Tensor
    gate_up: Tensor
    down: Tensor
    weights: Tensor
    ids: Tensor


def inputs(size: Size, rows: int, dtype: torch.dtype, device: str = DEVICE) -> Inputs:
    gate_up = normal(size.experts, 2 * size.width, size.hidden, device=device) * size.hidden**-0.5
    down = normal(size.experts, size.hidden, size.width, seed=1, device=device) * size.width**-0.5
    scores = normal(rows, size.experts, seed=3, device=device).softmax(-1)
    weights, ids = scores.topk(size.top_k)
    order = torch.arange(size.top_k - 1, -1, -1, device=device)
    x = normal(rows, size.hidden, seed=2, device=device)
    return Inputs(x.to(dtype), gate_up.to(dtype), down.to(dtype), weights[:, order], ids[:, order])


def _route(dtype: torch.dtype, experts: int, top_k: int) -> None:
    route(torch.zeros(3, experts, dtype=dtype), top_k, True)


def _moe(dtype: torch.dtype, size: Size, rows: int, activation: Activation) -> None:
    case = inputs(size, rows, dtype, device="cpu")
    moe(case.x, case.weights, case.ids, pack_experts(case.gate_up, case.down, activation))


SPILL_LIMITS = {"_product_kernel": 16}
"""Bytes; seen: 8, with tiles of 16 rows on sm_90, outside of the loop."""

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
COMPILED: list[tuple[str, Callable[[], None]]] = [
    *(
        (f"route-{dtype}-{experts}-{top_k}", partial(_route, dtype, experts, top_k))
        for dtype, experts, top_k in [(BF16, 128, 8), (FP32, 8, 2), (FP16, 256, 5)]
    ),
    *(
        (f"moe-{dtype}-{size}-{rows}-{activation}", partial(_moe, dtype, size, rows, activation))
        for dtype, size, rows, activation in [
            (BF16, Size(8, 4, 256, 128), 1, "silu"),
            (BF16, Size(8, 2, 256, 128), 128, "silu"),
            (BF16, Size(8, 2, 256, 128), 256, "gelu_tanh"),
            (BF16, Size(8, 2, 256, 128), 512, "silu"),
            (FP16, Size(8, 2, 80, 48), 1, "gelu"),
            (FP16, Size(8, 2, 256, 128), 512, "relu"),
            (FP16, Size(8, 2, 80, 48), 256, "silu"),
            (FP32, Size(8, 2, 64, 32), 1, "silu"),
            (FP32, Size(8, 2, 63, 20), 512, "silu"),
        ]
    ),
]
