"""Arrays of the host to a device, and results back, without waiting for either.

Many small copies cost more than their bytes, so what goes at one time goes as one. Page-locked memory comes
from torch's allocator, which hands a piece out again only when the copies that were begun from it are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Upload = Callable[..., tuple[Tensor, ...]]
"""Called with arrays, gives tensors of the same shapes and types on the device."""

_ALIGNMENT: Final = 16
_DTYPES: Final = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.bool_): torch.bool,
}


def share(*arrays: Array) -> tuple[Tensor, ...]:
    """`Upload` to the processor itself: tensors over the arrays' own memory."""
    return tuple(torch.from_numpy(array) for array in arrays)


class Uploader:
    """`Upload` to a device, all arrays of a call in one copy."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, *arrays: Array) -> tuple[Tensor, ...]:
        packed = pack(arrays, pinned=self.device.type == "cuda").to(self.device, non_blocking=True)
        return unpack(packed, arrays)


def pack(arrays: Sequence[Array], *, pinned: bool) -> Tensor:
    """The arrays one after the other as bytes, [num_bytes] uint8 of the host, each aligned to 16."""
    starts, size = _layout(arrays)
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    target = packed.numpy()
    for start, array in zip(starts, arrays, strict=True):
        target[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed


def unpack(packed: Tensor, like: Sequence[Array]) -> tuple[Tensor, ...]:
    """Tensors over the bytes that `pack` made of arrays of these shapes and types."""
    starts, size = _layout(like)
    assert packed.shape == (size,), f"{packed.shape[0]} bytes, expected {size}"
    return tuple(
        packed[start : start + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
        for start, array in zip(starts, like, strict=True)
    )


def _layout(arrays: Sequence[Array]) -> tuple[list[int], int]:
    starts: list[int] = []
    end = 0
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return starts, end


class Download:
    """Tensors on their way to the host."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if not any(tensor.is_cuda for tensor in tensors):
            self._copies = list(tensors)
            return
        self._copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
            for tensor in tensors
        ]
        self._event = torch.cuda.Event()
        self._event.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, in order."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._copies
