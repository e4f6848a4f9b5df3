"""Paged attention by gathers and batched matrix products.

A query's result must not depend on what else is in the batch, on how its prompt was cut into chunks, or on
padding. What that takes was found by trial (torch 2.13 with MKL) and is kept by tests:
- fewer than 4 query rows take another code path, so there is always a multiple of 4;
- a product alone in its batch is cut between threads, so there are always at least 2;
- a sum over 256 keys or more is cut where the library likes, so it is cut at every 128 here;
- padded keys have weight 0 and add nothing; softmax sums alike for every length that is a multiple of 16.
Scaled dot product attention keeps the first of these too, but is slower at small sizes (64 sequences of 96
tokens, 4 KV heads of 32: 0.9 ms against 0.4 ms).

Queries are cut into tiles, a decode being a tile of one. Tiles of similar length are padded to one shape and
run together, as many as a processor's cache holds: 64 sequences of 448 tokens took three times as long in
one group as in four. Whole blocks are gathered, which is twice as fast as a head's rows, and each KV head is
a batched product over the gathered blocks where they lie. All indices are worked out once per step and serve
every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape

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


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Consecutive queries of one sequence each; n tiles as four arrays of n."""

    seqs: Ints
    starts: Ints
    """Row of the first query in the packed batch."""
    num_queries: Ints
    context_lens: Ints
    """Keys that the last query sees; each query before it sees one less."""

    def take(self, which: Ints | slice) -> _Tiles:
        """Some of the tiles."""
        return _Tiles(self.seqs[which], self.starts[which], self.num_queries[which], self.context_lens[which])


@dataclass(frozen=True, slots=True)
class _Group:
    """Tiles that run as one product per KV head: n tiles, M query rows, L keys in W blocks."""

    query_rows: Tensor
    """[kv_heads · n · M] int64: rows of q seen as [T · heads, D]; padding repeats a tile's last row."""
    blocks: Tensor
    """[n · W] int32: rows of a cache seen as [blocks, block_size · kv_heads · D]."""
    bias: Tensor
    """[n, M or 1, K] float32: 0 where a query sees a key, else -inf; of the last K keys, as every query sees
    all before them. For whole contexts it would take tokens · heads · context floats."""
    num_tiles: int
    num_keys: int


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The groups of one step."""

    metadata: AttentionMetadata
    groups: list[_Group]


class CpuAttention:
    """Plans and runs attention; owns the memory that keys and values are gathered into."""

    def __init__(self) -> None:
        self._keys = torch.empty(0)
        self._values = torch.empty(0)

    def plan(self, metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
        """See `kernels.attention.plan_attention`."""
        tables = metadata.block_tables.numpy()
        groups = [_index(tiles, tables, metadata.block_size, shape) for tiles in _groups(metadata, shape)]
        size = max(g.blocks.shape[0] for g in groups) * metadata.block_size
        size *= shape.num_kv_heads * shape.head_dim
        if self._keys.shape[0] < size:
            self._keys, self._values = torch.empty(size), torch.empty(size)
        return CpuPlan(metadata, groups)

    def run(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, out: Tensor) -> None:
        """See `kernels.attention.attention`."""
        assert isinstance(plan, CpuPlan), "this plan was made by another op set"
        head_dim = q.shape[2]
        num_kv_heads = k_cache.shape[2]
        flat_q, flat_out = q.reshape(-1, head_dim), out.view(-1, head_dim)
        for group in plan.groups:
            queries = flat_q.index_select(0, group.query_rows).mul_(head_dim**-0.5)
            products = _attend(
                queries.view(num_kv_heads, group.num_tiles, -1, head_dim),
                _gather(k_cache, self._keys, group),
                _gather(v_cache, self._values, group),
                group.bias,
            )
            flat_out.index_copy_(0, group.query_rows, products.reshape(-1, head_dim))


def _gather(cache: Tensor, memory: Tensor, group: _Group) -> Tensor:
    """A group's blocks of a cache, copied into `memory`. Returns [kv_heads, n, L, D], not contiguous."""
    num_blocks, _, num_kv_heads, head_dim = cache.shape
    gathered = memory[: group.blocks.shape[0] * cache[0].numel()].view(group.blocks.shape[0], -1)
    torch.index_select(cache.view(num_blocks, -1), 0, group.blocks, out=gathered)
    tokens = gathered.view(group.num_tiles, -1, num_kv_heads, head_dim)
    return tokens[:, : group.num_keys].permute(2, 0, 1, 3)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """queries [kv_heads, n, M, D], keys and values [kv_heads, n, L, D], bias [n, M or 1, K].

    Returns [kv_heads, n, M, D].
    """
    if queries.shape[1] == 1:  # one tile: its heads are the batch, twice if there is only one
        of_tile = [x.transpose(0, 1) for x in (queries, keys, values)]
        if queries.shape[0] == 1:
            of_tile = [x.expand(-1, 2, -1, -1) for x in of_tile]
        return _multiply(*of_tile, bias)[:, : queries.shape[0]].transpose(0, 1)
    return _multiply(queries, keys, values, bias)


def _multiply(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of [A, B, rows, D] tensors by A products of B pairs each, B ≥ 2."""
    num_keys = keys.shape[2]
    scores = queries.new_empty((*queries.shape[:3], num_keys))
    for part, q, k in zip(scores, queries, keys, strict=True):
        torch.bmm(q, k.transpose(1, 2), out=part)
    scores[..., num_keys - bias.shape[-1] :].add_(bias)
    weights = torch.softmax(scores, -1)
    out = queries.new_empty(queries.shape)
    for part, w, v in zip(out, weights, values, strict=True):
        torch.bmm(w[:, :, :KEY_TILE], v[:, :KEY_TILE], out=part)
        for start in range(KEY_TILE, num_keys, KEY_TILE):
            end = start + KEY_TILE
            part.baddbmm_(w[:, :, start:end], v[:, start:end])
    return out


def _groups(metadata: AttentionMetadata, shape: AttentionShape) -> Iterator[_Tiles]:
    """Tiles of about the same number of queries and of keys, as many as fit the limits."""
    tiles = _tiles(metadata, shape)
    size_classes = np.frexp(tiles.num_queries - 1)[1]  # 0 for one query, else the next power of two
    order = np.lexsort((tiles.context_lens, size_classes))
    tiles, size_classes = tiles.take(order), size_classes[order]
    num_tiles = len(order)
    start = 0
    while start < num_tiles:
        num_queries, num_keys = tiles.num_queries[start:], _round_up(tiles.context_lens[start:], KEY_STEP)
        products = np.arange(1, num_tiles - start + 1) * shape.num_kv_heads
        joins = (
            (size_classes[start:] == size_classes[start])
            & (num_keys <= max(2 * int(num_keys[0]), 4 * KEY_STEP))
            & (products * num_keys * shape.head_dim <= MAX_GATHER)
            & (products * num_queries * num_keys <= MAX_SCORES)
        )
        joins[0] = True
        size = len(joins) if joins.all() else int(joins.argmin())
        yield tiles.take(slice(start, start + size))
        start += size


def _tiles(metadata: AttentionMetadata, shape: AttentionShape) -> _Tiles:
    bounds = metadata.cu_seqlens_q.numpy().astype(np.int64)
    context_lens = metadata.context_lens.numpy().astype(np.int64)
    starts, num_queries = bounds[:-1], np.diff(bounds)
    tile = np.clip(MAX_TILE_SCORES // (shape.num_heads * context_lens), ROW_STEP, QUERY_TILE)
    num_tiles = -(-num_queries // tile)
    seqs = np.repeat(np.arange(len(num_tiles)), num_tiles)
    nth = np.arange(len(seqs)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    first = nth * tile[seqs]
    last = np.minimum(first + tile[seqs], num_queries[seqs])
    return _Tiles(
        seqs=seqs,
        starts=starts[seqs] + first,
        num_queries=last - first,
        context_lens=context_lens[seqs] - (num_queries[seqs] - last),
    )


def _index(tiles: _Tiles, tables: Ints, block_size: int, shape: AttentionShape) -> _Group:
    """Indices and bias of one group; n tiles, M query rows, L keys in W blocks."""
    num_queries = tiles.num_queries[:, None]
    most_queries = int(num_queries.max())
    num_keys = _round_up(int(tiles.context_lens.max()), KEY_STEP)
    width = -(-num_keys // block_size)
    group_size = shape.num_heads // shape.num_kv_heads

    # Row m is query m // group_size of the tile and head m % group_size of the KV head; what is past the end
    # repeats the last of either, so that padding computes, and writes, the same values once more.
    row = np.arange(_round_up(most_queries * group_size, ROW_STEP))
    query = np.minimum(row // group_size, num_queries - 1)  # [n, M]
    head = np.where(row < num_queries * group_size, row % group_size, group_size - 1)
    first_head = np.arange(0, shape.num_heads, group_size)[:, None, None]
    query_rows = first_head + ((tiles.starts[:, None] + query) * shape.num_heads + head)

    last_key = tiles.context_lens[:, None] - num_queries + query
    if most_queries == 1:
        last_key = last_key[:, :1]
    hidden = np.arange(int(last_key.min()) + 1, num_keys) > last_key[:, :, None]
    bias = np.where(hidden, np.float32(-np.inf), np.float32(0))
    return _Group(
        query_rows=torch.from_numpy(query_rows.reshape(-1)),
        blocks=torch.from_numpy(tables[tiles.seqs, :width].reshape(-1)),
        bias=torch.from_numpy(bias),
        num_tiles=len(tiles.seqs),
        num_keys=num_keys,
    )


_Number = TypeVar("_Number", int, Ints)


def _round_up(value: _Number, step: int) -> _Number:
    return -(-value // step) * step
