"""What launch parameters may ask of a device."""

from __future__ import annotations

import functools
from typing import Final

import torch

ASSUMED_SMS: Final = 132
"""Of an H100: what is interpreted or compiled without a GPU gets its launch parameters."""


@functools.cache
def num_sms(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; `ASSUMED_SMS` where the device is not CUDA."""
    if device.type != "cuda":
        return ASSUMED_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count
