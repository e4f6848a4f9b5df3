"""Paged attention in C++: blocks are read where they lie.

In a block each KV head's numbers lie together, keys by channel: [kv_heads, D, block_size], so that 16 keys
meet a query's channel in one vector; values [kv_heads, block_size, D]. See `as_stored` and `by_token`.

A query's result depends on its own context alone: every row goes the same way through the same tiles of keys,
which begin at multiples of 32 positions. See kernels/cpu/native/attention.inc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape, LayerCache
from kernels.cpu.calls import Calls, Function
from kernels.cpu.native import TYPES
from kernels.cpu.native.structs import ATTENTION, TILES

MOST_ROWS: Final = 128
"""Rows of a tile, queries times heads of a KV head; the library's own bound."""
_ROWS: Final = 64
"""That a tile is cut to where a KV head has fewer heads: more would fall out of the nearest cache."""
MOST_CHANNELS: Final = 256


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """The tiles of one step."""

    metadata: AttentionMetadata
    shape: AttentionShape
    tiles: Tensor
    """[N, 3] int32: sequence, first query, number of queries; those with most to do first."""
    slopes: Tensor | None
    heads_at_once: int
    """KV heads of a tile that may go together."""
    empty_rows: Tensor | None
    """[E] int64: queries that have no context."""


class PagedAttention:
    """Attention by a library."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._slopes: dict[tuple[float, ...], Tensor] = {}

    def plan(self, metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
        """See `kernels.attention.plan_attention`."""
        group = shape.num_heads // shape.num_kv_heads
        assert group <= MOST_ROWS, f"{group} heads on a KV head, at most {MOST_ROWS}"
        assert shape.head_dim <= MOST_CHANNELS, f"head_dim {shape.head_dim}, at most {MOST_CHANNELS}"
        contexts, queries = metadata.context_lens.numpy(), np.diff(metadata.cu_seqlens_q.numpy())
        empty_rows = None
        if not contexts.all():
            empty_rows = torch.from_numpy(np.flatnonzero(np.repeat(contexts == 0, queries)))
        num_queries = max(1, _ROWS // group)
        counts = np.where(contexts > 0, queries, 0)
        most_rows = min(int(counts.max(initial=1)), num_queries) * group
        tiles = self._tiles(metadata, num_queries, int((-(-counts // num_queries)).sum()))
        return PagedPlan(
            metadata=metadata,
            shape=shape,
            tiles=tiles,
            heads_at_once=_heads_at_once(most_rows, shape),
            slopes=self._slopes_of(shape),
            empty_rows=empty_rows,
        )

    def run(self, q: Tensor, cache: LayerCache, plan: AttentionPlan, out: Tensor) -> None:
        """See `kernels.attention.attention`."""
        assert isinstance(plan, PagedPlan), "this plan was made by another op set"
        shape, metadata = plan.shape, plan.metadata
        if q.stride(1) != shape.head_dim:
            q = q.contiguous()
        arguments = ATTENTION.pack(
            *(x.data_ptr() for x in (q, cache.keys, cache.values)),
            *cache.scale_pointers(),
            out.data_ptr(),
            metadata.cu_seqlens_q.data_ptr(),
            metadata.context_lens.data_ptr(),
            metadata.block_tables.data_ptr(),
            0 if plan.slopes is None else plan.slopes.data_ptr(),
            plan.tiles.data_ptr(),
            *(q.stride(0), metadata.block_tables.stride(0)),
            *(len(plan.tiles), shape.num_heads, shape.num_kv_heads, plan.heads_at_once),
            *(shape.head_dim, metadata.block_size, shape.window, shape.scale, shape.soft_cap),
            *(TYPES[q.dtype], TYPES[cache.keys.dtype]),
        )
        self._calls.make(Function.ATTENTION, arguments)
        if plan.empty_rows is not None:
            out.index_fill_(0, plan.empty_rows, 0.0)

    def _tiles(self, metadata: AttentionMetadata, num_queries: int, num_tiles: int) -> Tensor:
        """Up to `num_queries` consecutive queries of a sequence each; without a context it has none."""
        tiles = torch.empty((num_tiles, 3), dtype=torch.int32)
        pointers = (x.data_ptr() for x in (metadata.cu_seqlens_q, metadata.context_lens, tiles))
        sizes = (metadata.context_lens.shape[0], num_queries, num_tiles)
        self._calls.make(Function.TILES, TILES.pack(*pointers, *sizes))
        return tiles

    def _slopes_of(self, shape: AttentionShape) -> Tensor | None:
        if not shape.alibi_slopes:
            return None
        if shape.alibi_slopes not in self._slopes:  # kept, as a recording may point at them
            slopes = np.array(shape.alibi_slopes, dtype=np.float32)
            self._slopes[shape.alibi_slopes] = torch.from_numpy(slopes)
        return self._slopes[shape.alibi_slopes]


def _heads_at_once(most_rows: int, shape: AttentionShape) -> int:
    """All that fit, where every tile has few rows for a KV head."""
    fitting = (n for n in range(shape.num_kv_heads, 0, -1) if shape.num_kv_heads % n == 0)
    return next(n for n in fitting if n == 1 or n * most_rows <= _ROWS)


def as_stored(cache: LayerCache) -> LayerCache:
    """A new cache as this op set has it, of one as `LayerCache` says."""
    blocks = cache.keys.shape
    keys, values = cache.keys.permute(0, 2, 3, 1), cache.values.transpose(1, 2)
    scales = (
        x if x is None else x.transpose(1, 2).contiguous().view(x.shape)
        for x in (cache.key_scales, cache.value_scales)
    )
    return LayerCache(keys.contiguous().view(blocks), values.contiguous().view(blocks), *scales)


def by_token(cache: LayerCache) -> LayerCache:
    """The other way around."""
    blocks, block_size, kv_heads, head_dim = cache.keys.shape
    keys = cache.keys.view(blocks, kv_heads, head_dim, block_size).permute(0, 3, 1, 2)
    values = cache.values.view(blocks, kv_heads, block_size, head_dim).transpose(1, 2)
    scales = (
        x if x is None else x.view(blocks, kv_heads, block_size).transpose(1, 2).contiguous()
        for x in (cache.key_scales, cache.value_scales)
    )
    return LayerCache(keys.contiguous(), values.contiguous(), *scales)
