"""The memory of the KV cache: all layers in one piece, so that a block is copied in all of them at once."""

from __future__ import annotations

import mmap
import sys
from math import prod

import torch
from torch import Tensor

from engine.models.model import KVCache, Model
from kernels.attention import FP8, GREATEST, LayerCache


class KVStorage:
    """`num_blocks` blocks and the null block, which nobody owns; zeros at first."""

    def __init__(self, model: Model, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        """dtype: the model's, or one of 8 bits, which have a scale for each token's head beside them."""
        shape = model.attention_shapes[0]
        size = (model.num_layers, 2, num_blocks + 1, block_size, shape.num_kv_heads, shape.head_dim)
        # FP8 as bytes: not every build of torch moves it.
        self._data = _zeros(size, torch.uint8 if dtype == FP8 else dtype, model.device)
        self._scales: Tensor | None = None
        if dtype in GREATEST:
            self._scales = _zeros(size[:-1], torch.float32, model.device)
        self.layers: KVCache = [self._layer(i, dtype) for i in range(model.num_layers)]

    def _layer(self, i: int, dtype: torch.dtype) -> LayerCache:
        keys, values = self._data[i].view(dtype)
        if self._scales is None:
            return LayerCache(keys, values)
        return LayerCache(keys, values, self._scales[i, 0], self._scales[i, 1])

    def copy_blocks(self, sources: Tensor, targets: Tensor) -> None:
        """sources, targets: [N] int64, on the cache's device; no target is a source or twice there."""
        for data in (self._data, self._scales):
            if data is not None:
                data.index_copy_(2, targets, data.index_select(2, sources))

    def clear_blocks(self, blocks: Tensor) -> None:
        """Zeros in these blocks. blocks: [N] int64, on the cache's device."""
        for data in (self._data, self._scales):
            if data is not None:
                data.index_fill_(2, blocks, 0)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the host, in pages that take memory, and time to be made, when they are first written to."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    options = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    pages = mmap.mmap(-1, prod(size) * dtype.itemsize, **options)
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(size)


def block_bytes(
    num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> int:
    """What one block takes in all layers, scales included."""
    scale_bytes = torch.float32.itemsize if dtype in GREATEST else 0
    return 2 * num_layers * block_size * num_kv_heads * (head_dim * dtype.itemsize + scale_bytes)
