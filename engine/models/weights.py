"""Where a decoder's parameters come from: a checkpoint's files, or chance."""

from __future__ import annotations

import zlib
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from engine.models.spec import Param

CPU = torch.device("cpu")
_PATTERN_SIZE = 1_000_003
"""Dummy values repeat after this many: a prime, so that no two rows of a matrix are alike."""


class Weights(Protocol):
    """Parameters by their spec."""

    @property
    def dtype(self) -> torch.dtype:
        """Of every parameter but those that the spec keeps in float32."""
        ...

    @property
    def device(self) -> torch.device:
        """Where parameters are read to."""
        ...

    def read(self, param: Param, layer: int = 0) -> Tensor:
        """The parameter of that layer, contiguous, in memory of its own."""
        ...


class DummyWeights:
    """Random values in the spec's shapes, the same for every load: for benchmarks.

    Matrices are uniform with a variance of 1 / columns, so that activations stay about as large as they come
    in; norms are near 1. One million random numbers are made and repeated, which is as fast as memory. They
    are rounded to bfloat16, as most checkpoints are, whatever they are read as: precisions then differ by how
    they compute and not by what they were given.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.dtype = dtype
        self.device = device
        generator = torch.Generator().manual_seed(0)
        self._pattern = torch.rand(_PATTERN_SIZE, generator=generator).mul_(2).sub_(1).to(device)

    def read(self, param: Param, layer: int = 0) -> Tensor:
        """See `Weights.read`."""
        is_vector = len(param.shape) == 1
        scale = 0.1 if is_vector else (3 / param.shape[-1]) ** 0.5
        is_norm = param.float32 and not param.name.endswith("_bias")
        out = torch.empty(
            param.shape, dtype=torch.float32 if param.float32 else self.dtype, device=self.device
        )
        flat = out.view(-1)
        pattern = (self._pattern * scale).add_(1.0 if is_norm else 0.0)
        pattern = pattern.to(torch.bfloat16).to(out.dtype)
        shift = zlib.crc32(f"{param.name} {layer}".encode()) % _PATTERN_SIZE
        size = prod(param.shape)
        done = 0
        while done < size:
            part = pattern[shift : shift + size - done]
            flat[done : done + len(part)] = part
            done += len(part)
            shift = 0
        return out
