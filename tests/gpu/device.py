"""What this machine can prove: everything on a GPU, the same bodies at tiny sizes on a processor."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from tests.kernels.triton.interpreter import accept_runtime_bounds

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
OPS = "triton" if HAS_GPU else "cpu"

if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports kernels.triton
    accept_runtime_bounds()


@dataclass(frozen=True)
class Scale:
    """How large the models and workloads are."""

    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    num_prompts: int
    longest_prompt: int
    max_tokens: int
    num_blocks: int
    """So few that sequences are preempted."""

    @property
    def window(self) -> int:
        """Room for the longest prompt and its output, in whole blocks."""
        return -(-(self.longest_prompt + self.max_tokens) // 16) * 16


_DEVICE_SCALE = Scale(512, 4, 8, 2000, 24, 400, 40, 60)
SCALE = _DEVICE_SCALE if HAS_GPU else Scale(128, 2, 2, 300, 6, 60, 20, 6)
SMALLEST = Scale(64, 1, 1, 100, 2, 12, 3, 6)
"""For Triton's interpreter, which takes milliseconds where hardware takes none."""
WINDOW = 512
