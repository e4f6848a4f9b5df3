"""What launch parameters may ask of a device."""

from __future__ import annotations

import functools
from typing import Final

import torch

ASSUMED_SMS: Final = 132
"""Of an H100: what is interpreted or compiled without a GPU gets its launch parameters."""


def num_sms(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; `ASSUMED_SMS` where the device is not CUDA."""
    if device.type != "cuda":
        return ASSUMED_SMS
    return _num_sms(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _num_sms(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
