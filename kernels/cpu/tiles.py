"""Queries of a step cut into tiles, and tiles put into groups that run as one product.

A tile is up to 128 consecutive queries of one sequence, a decode a tile of one. Tiles of similar length are
padded to one shape and run together, as many as a processor's cache holds: 64 sequences of 448 tokens took
three times as long in one group as in four. All indices are worked out once per step and serve every layer.

With a sliding window a tile begins at the last multiple of KEY_TILE (and of the block size) before its first
query's window, so that a key's place in the sums depends on its position alone, never on the chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionShape

KEY_STEP: Final = 16
"""Contexts are padded to a multiple of this."""
KEY_TILE: Final = 128
"""Keys per partial sum of weights · values."""
ROW_STEP: Final = 4
"""Query rows of a product are padded to a multiple of this."""
QUERY_TILE: Final = 128
"""Queries of one tile: the later ones of a long prompt see keys that the earlier ones need not look at."""
MAX_GATHER: Final = 1 << 19
"""Elements of gathered keys in a group of several tiles."""
MAX_SCORES: Final = 1 << 20
"""Scores in a group of several tiles."""
MAX_TILE_SCORES: Final = 1 << 25
"""Scores of one tile: with very long contexts it holds fewer queries."""

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
_Int32s = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class RowSlopes:
    """What ALiBi needs to know of a group's rows."""

    slopes: Tensor
    """[kv_heads, n, M, 1] float32: of each row's head."""
    last_keys: Tensor
    """[n, M or 1, 1] float32: which of the L keys is each query's own."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles that run as one product per KV head: n tiles, M query rows, L keys in W blocks."""

    query_rows: Tensor
    """[kv_heads · n · M] int64: rows of q seen as [T · heads, D]; padding repeats a tile's last row."""
    blocks: Tensor
    """[n · W] int32: rows of a cache seen as [blocks, block_size · kv_heads · D]."""
    bias: Tensor
    """[n, M or 1, K] float32: 0 where a query sees a key, else -inf; of the last K keys, as every query comes
    after all before them. For whole contexts it would take tokens · heads · context floats."""
    window_bias: Tensor | None
    """[n, M or 1, K] float32, likewise, of the first K keys: those that the window hides from some query."""
    slopes: RowSlopes | None
    num_tiles: int
    num_keys: int


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Consecutive queries of one sequence each; n tiles as five arrays of n."""

    seqs: Ints
    starts: Ints
    """Row of the first query in the packed batch."""
    num_queries: Ints
    first_keys: Ints
    """Position where the tile's keys begin: at a block's start."""
    num_keys: Ints
    """Keys up to the last query's own; each query before it sees one less."""

    def take(self, which: Ints | slice) -> _Tiles:
        """Some of the tiles."""
        return _Tiles(
            self.seqs[which],
            self.starts[which],
            self.num_queries[which],
            self.first_keys[which],
            self.num_keys[which],
        )


def group_tiles(metadata: AttentionMetadata, shape: AttentionShape) -> list[Group]:
    """The groups of one step."""
    tables = metadata.block_tables.numpy()
    tiles = _tiles(metadata, shape)
    size_classes = np.frexp(tiles.num_queries - 1)[1]  # 0 for one query, else the next power of two
    order = np.lexsort((tiles.num_keys, size_classes))
    tiles = tiles.take(order)
    bounds = _bounds(size_classes[order].tolist(), tiles, shape)
    return [
        _index(tiles.take(slice(start, end)), tables, metadata.block_size, shape)
        for start, end in pairwise(bounds)
    ]


def _bounds(size_classes: list[int], tiles: _Tiles, shape: AttentionShape) -> list[int]:
    """Where groups begin and end among sorted tiles: those of about the same number of queries and of keys,
    as many as fit the limits. In plain ints: hundreds of decodes would cost vector operations per group."""
    num_queries = tiles.num_queries.tolist()
    num_keys = _round_up(tiles.num_keys, KEY_STEP).tolist()
    max_gather, max_scores = MAX_GATHER // shape.head_dim, MAX_SCORES
    bounds = [0]
    start = most_keys = 0
    for i, keys in enumerate(num_keys):
        if i == start:
            most_keys = max(2 * keys, 4 * KEY_STEP)
            continue
        products = (i - start + 1) * shape.num_kv_heads * keys
        if (
            size_classes[i] != size_classes[start]
            or keys > most_keys
            or products > max_gather
            or products * num_queries[i] > max_scores
        ):
            bounds.append(i)
            start, most_keys = i, max(2 * keys, 4 * KEY_STEP)
    return [*bounds, len(num_keys)]


def _tiles(metadata: AttentionMetadata, shape: AttentionShape) -> _Tiles:
    bounds = metadata.cu_seqlens_q.numpy().astype(np.int64)
    context_lens = metadata.context_lens.numpy().astype(np.int64)
    starts, num_queries = bounds[:-1], np.diff(bounds)
    alignment = math.lcm(KEY_TILE, metadata.block_size)
    seen = context_lens
    if shape.window:
        seen = np.minimum(context_lens, shape.window + alignment + QUERY_TILE)
    tile = np.clip(MAX_TILE_SCORES // (shape.num_heads * seen), ROW_STEP, QUERY_TILE)
    num_tiles = -(-num_queries // tile)
    seqs = np.repeat(np.arange(len(num_tiles)), num_tiles)
    nth = np.arange(len(seqs)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    first = nth * tile[seqs]
    last = np.minimum(first + tile[seqs], num_queries[seqs])
    first_positions = context_lens[seqs] - num_queries[seqs] + first
    first_keys = np.zeros_like(first)
    if shape.window:
        first_keys = np.maximum(first_positions - shape.window + 1, 0) // alignment * alignment
    return _Tiles(
        seqs=seqs,
        starts=starts[seqs] + first,
        num_queries=last - first,
        first_keys=first_keys,
        num_keys=first_positions + (last - first) - first_keys,
    )


def _index(tiles: _Tiles, tables: _Int32s, block_size: int, shape: AttentionShape) -> Group:
    """Indices and biases of one group; n tiles, M query rows, L keys in W blocks."""
    num_queries = tiles.num_queries[:, None]
    most_queries = int(num_queries.max())
    num_keys = _round_up(int(tiles.num_keys.max()), KEY_STEP)
    if most_queries == 1:
        head = _heads_of_decodes(shape)  # [kv_heads, 1, M]
        query_rows = head + (tiles.starts * shape.num_heads)[:, None]
        last_keys = (tiles.num_keys - 1)[:, None, None]
    else:
        head, query = _rows(num_queries, most_queries, shape)
        query_rows = head + (tiles.starts[:, None] + query) * shape.num_heads
        last_keys = (tiles.num_keys[:, None] - num_queries + query)[:, :, None]
    width = -(-num_keys // block_size)
    windowed = shape.window > 0
    blocks = _windowed_blocks(tiles, tables, width, block_size) if windowed else tables[tiles.seqs, :width]
    return Group(
        query_rows=torch.from_numpy(query_rows.reshape(-1)),
        blocks=torch.from_numpy(blocks.reshape(-1)),
        bias=_bias(np.arange(int(last_keys.min()) + 1, num_keys) > last_keys),
        window_bias=_window_bias(last_keys, shape.window),
        slopes=_slopes(head, last_keys, shape.alibi_slopes) if shape.alibi_slopes else None,
        num_tiles=len(tiles.seqs),
        num_keys=num_keys,
    )


def _rows(num_queries: Ints, most_queries: int, shape: AttentionShape) -> tuple[Ints, Ints]:
    """Head [kv_heads, n, M] and query [n, M] of each row of n tiles.

    Row m is query m // group_size of the tile and head m % group_size of the KV head; what is past the end
    repeats the last of either, so that padding computes, and writes, the same values once more.
    """
    group_size = shape.num_heads // shape.num_kv_heads
    row = np.arange(_round_up(most_queries * group_size, ROW_STEP))
    query = np.minimum(row // group_size, num_queries - 1)
    head = np.where(row < num_queries * group_size, row % group_size, group_size - 1)
    return np.arange(0, shape.num_heads, group_size)[:, None, None] + head, query


@lru_cache
def _heads_of_decodes(shape: AttentionShape) -> Ints:
    """`_rows` of tiles of one query: the same for all of them. [kv_heads, 1, M]."""
    return _rows(np.ones((1, 1), dtype=np.int64), 1, shape)[0]


def _slopes(head: Ints, last_keys: Ints, slopes: tuple[float, ...]) -> RowSlopes:
    shape = (len(head), len(last_keys), head.shape[2])
    of_rows = np.array(slopes, dtype=np.float32)[np.broadcast_to(head, shape)][..., None]
    return RowSlopes(torch.from_numpy(of_rows), torch.from_numpy(last_keys.astype(np.float32)))


def _window_bias(last_keys: Ints, window: int) -> Tensor | None:
    """None where no query's window begins after the group's first key."""
    if not window:
        return None
    num_hidden = int(last_keys.max()) - window + 1
    return _bias(np.arange(num_hidden) <= last_keys - window) if num_hidden > 0 else None


def _bias(hidden: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Tensor:
    return torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0)))


def _windowed_blocks(tiles: _Tiles, tables: _Int32s, width: int, block_size: int) -> _Int32s:
    """[n, width]. Past the end of a table its last block is read once more, with weight 0."""
    columns = tiles.first_keys[:, None] // block_size + np.arange(width)
    return tables[tiles.seqs[:, None], np.minimum(columns, tables.shape[1] - 1)]


_Number = TypeVar("_Number", int, Ints)


def _round_up(value: _Number, step: int) -> _Number:
    return -(-value // step) * step
