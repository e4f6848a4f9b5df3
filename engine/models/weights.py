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

    def lend(self, param: Param, layer: int, scratch: Scratch) -> Tensor:
        """The same in memory that is used again, until something else is lent from it; of any floating type
        that holds it exactly, which is the one of its file, as a rule."""
        ...


class Scratch:
    """Memory of the host that is lent again and again, and grows to the largest that was asked for.

    Memory that is new costs as much as filling it several times: the system hands out zeroed pages of 4 KiB.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor with anything in it; what was lent before is no longer its borrower's."""
        size = prod(shape) * dtype.itemsize
        if size > self._memory.numel():
            self._memory = torch.empty(0, dtype=torch.uint8)  # the old goes before the new comes
            self._memory = torch.empty(size, dtype=torch.uint8)
        return self._memory[:size].view(dtype).view(shape)


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
        self._patterns: dict[tuple[float, float, torch.dtype], Tensor] = {}

    def read(self, param: Param, layer: int = 0) -> Tensor:
        """See `Weights.read`."""
        dtype = torch.float32 if param.float32 else self.dtype
        return self._fill(param, layer, torch.empty(param.shape, dtype=dtype, device=self.device))

    def lend(self, param: Param, layer: int, scratch: Scratch) -> Tensor:
        """See `Weights.lend`."""
        return self._fill(param, layer, scratch.lend(param.shape, self.dtype))

    def _fill(self, param: Param, layer: int, out: Tensor) -> Tensor:
        is_vector = len(param.shape) == 1
        scale = 0.1 if is_vector else (3 / param.shape[-1]) ** 0.5
        is_norm = param.float32 and not param.name.endswith("_bias")
        pattern = self._pattern_of(scale, 1.0 if is_norm else 0.0, out.dtype)
        flat = out.view(-1)
        shift = zlib.crc32(f"{param.name} {layer}".encode()) % _PATTERN_SIZE
        size = prod(param.shape)
        done = 0
        while done < size:
            part = pattern[shift : shift + size - done]
            flat[done : done + len(part)] = part
            done += len(part)
            shift = 0
        return out

    def _pattern_of(self, scale: float, offset: float, dtype: torch.dtype) -> Tensor:
        """A model has few of them: each is made once."""
        key = (scale, offset, dtype)
        if key not in self._patterns:
            self._patterns[key] = (self._pattern * scale).add_(offset).to(torch.bfloat16).to(dtype)
        return self._patterns[key]
