"""What launch parameters may ask of a device."""

from __future__ import annotations

import functools
from typing import Final

import torch

ASSUMED_SMS: Final = 132
"""Of an H100: what is interpreted or compiled without a GPU gets its launch parameters."""

ASSUMED_ARCH: int = 90
"""Likewise; whoever compiles for another sets it."""


def arch(device: torch.device) -> int:
    """Ten times the compute capability: 80 is an A100, 90 an H100; `ASSUMED_ARCH` where not CUDA."""
    return _arch(device) if device.type == "cuda" else ASSUMED_ARCH


@functools.cache
def _arch(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def num_sms(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; `ASSUMED_SMS` where the device is not CUDA."""
    if device.type != "cuda":
        return ASSUMED_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count
