"""What every wrapper asserts of a tensor: these are our own invariants, not a user's input."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)
"""What activations, weights and caches may be."""


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Asserts shape (None: any), dtype, device, and that the last dimension is contiguous."""
    found = tensor.shape
    if found != shape:  # the quick way first: a step's layers come here a thousand times
        assert _fits(found, shape), f"{name}: shape {tuple(found)}, expected {shape}"
    assert tensor.dtype == dtype, f"{name}: {tensor.dtype}, expected {dtype}"
    assert tensor.device == device, f"{name}: on {tensor.device}, expected {device}"
    assert tensor.stride(-1) == 1 or tensor.shape[-1] <= 1, f"{name}: last dimension is strided"


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    if len(found) != len(shape):
        return False
    for want, got in zip(shape, found, strict=False):
        if want is None or want == got:
            continue
        return False
    return True


def check_contiguous(name: str, tensor: Tensor) -> None:
    """Asserts that a tensor has no gaps."""
    assert tensor.is_contiguous(), f"{name}: strides {tensor.stride()}, expected contiguous"


def check_float(name: str, tensor: Tensor) -> None:
    """Asserts one of the dtypes that every op set computes."""
    assert tensor.dtype in FLOATS, f"{name}: {tensor.dtype}, expected float32, bfloat16 or float16"
