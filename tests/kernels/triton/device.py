"""Where the kernels run in this process, and in which dtypes they can be right there."""

from __future__ import annotations

import os
from typing import Final

import torch

from kernels.checks import FLOATS

INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"

DEVICE: Final = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

DTYPES: Final[tuple[torch.dtype, ...]] = FLOATS if DEVICE == "cuda" else (torch.float32,)
"""The interpreter computes products of bfloat16 wrongly, an error of Triton's own: float32 alone there."""
