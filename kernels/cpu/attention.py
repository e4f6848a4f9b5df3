"""Paged attention by gathers and batched matrix products.

A query's result must not depend on what else is in the batch, on how its prompt was cut into chunks, or on
padding. What that takes was found by trial (torch 2.13 with MKL) and is kept by tests:
- fewer than 4 query rows take another code path, so there is always a multiple of 4;
- a product alone in its batch is cut between threads, so there are always at least 2;
- a sum over 256 keys or more is cut where the library likes, so it is cut at every 128 here;
- hidden keys have weight 0 and add nothing, before a window's as after a query's own; softmax sums alike for
  every length that is a multiple of 16, and from every start that is one.
Scaled dot product attention keeps the first of these too, but is slower at small sizes (64 sequences of 96
tokens, 4 KV heads of 32: 0.9 ms against 0.4 ms).

Whole blocks are gathered, which is twice as fast as a head's rows, and each KV head is a batched product over
the gathered blocks where they lie. Half precision is widened as it is gathered; nothing exact is promised of
what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape, LayerCache
from kernels.cpu.tiles import KEY_TILE, Group, Ints, group_tiles


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The groups of one step."""

    metadata: AttentionMetadata
    shape: AttentionShape
    groups: list[Group]
    empty_rows: Tensor | None = None
    """[E] int64: queries that have no context."""


class CpuAttention:
    """Plans and runs attention; owns the memory that keys and values are gathered into."""

    def __init__(self) -> None:
        self._keys = torch.empty(0)
        self._values = torch.empty(0)

    def plan(self, metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
        """See `kernels.attention.plan_attention`."""
        empty = (metadata.context_lens == 0).numpy()
        if empty.any():
            return self._plan_with_empty(metadata, shape, np.flatnonzero(empty))
        groups = group_tiles(metadata, shape)
        size = max(g.blocks.shape[0] for g in groups) * metadata.block_size
        size *= shape.num_kv_heads * shape.head_dim
        if self._keys.shape[0] < size:
            self._keys, self._values = torch.empty(size), torch.empty(size)
        return CpuPlan(metadata, shape, groups)

    def _plan_with_empty(self, metadata: AttentionMetadata, shape: AttentionShape, empty: Ints) -> CpuPlan:
        """Sequences without a context attend to a slot of the null block, and what comes of it is dropped."""
        plan = self.plan(replace(metadata, context_lens=metadata.context_lens.clamp_min(1)), shape)
        assert isinstance(plan, CpuPlan), "the plan of this op set"
        rows = metadata.cu_seqlens_q[torch.from_numpy(empty)].long()
        return CpuPlan(metadata, shape, plan.groups, rows)

    def run(self, q: Tensor, cache: LayerCache, plan: AttentionPlan, out: Tensor) -> None:
        """See `kernels.attention.attention`."""
        assert isinstance(plan, CpuPlan), "this plan was made by another op set"
        shape = plan.shape
        scale = shape.scale / shape.soft_cap if shape.soft_cap else shape.scale
        flat_q, flat_out = q.reshape(-1, shape.head_dim), out.view(-1, shape.head_dim)
        for group in plan.groups:
            queries = flat_q.index_select(0, group.query_rows).float().mul_(scale)
            products = _attend(
                queries.view(shape.num_kv_heads, group.num_tiles, -1, shape.head_dim),
                _gather(cache.keys, cache.key_scales, self._keys, group),
                _gather(cache.values, cache.value_scales, self._values, group),
                group,
                shape.soft_cap,
            )
            products = products.reshape(-1, shape.head_dim).to(out.dtype)
            flat_out.index_copy_(0, group.query_rows, products)
        if plan.empty_rows is not None:
            out.index_fill_(0, plan.empty_rows, 0.0)


def _gather(cache: Tensor, scales: Tensor | None, memory: Tensor, group: Group) -> Tensor:
    """A group's blocks of a cache, copied into `memory`. Returns [kv_heads, n, L, D] float32, not
    contiguous."""
    num_blocks, _, num_kv_heads, head_dim = cache.shape
    gathered = memory[: group.blocks.shape[0] * cache[0].numel()].view(group.blocks.shape[0], -1)
    if cache.dtype == gathered.dtype:
        torch.index_select(cache.view(num_blocks, -1), 0, group.blocks, out=gathered)
    else:
        gathered.copy_(cache.view(num_blocks, -1).index_select(0, group.blocks))
    tokens = gathered.view(group.num_tiles, -1, num_kv_heads, head_dim)
    if scales is not None:
        tokens.mul_(scales.index_select(0, group.blocks).view(*tokens.shape[:-1], 1))
    return tokens[:, : group.num_keys].permute(2, 0, 1, 3)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, group: Group, soft_cap: float) -> Tensor:
    """queries [kv_heads, n, M, D], keys and values [kv_heads, n, L, D]. Returns [kv_heads, n, M, D]."""
    num_kv_heads, num_tiles = queries.shape[:2]
    if num_tiles > 1:
        scores = _score(queries, keys)
        _adjust(scores, group, soft_cap)
        return _weigh(torch.softmax(scores, -1), values)
    # One tile: its heads are the batch, twice if there is only one.
    queries, keys, values = (x.transpose(0, 1) for x in (queries, keys, values))
    if num_kv_heads == 1:
        queries, keys, values = (x.expand(-1, 2, -1, -1) for x in (queries, keys, values))
    scores = _score(queries, keys)
    _adjust(scores.transpose(0, 1), group, soft_cap)
    return _weigh(torch.softmax(scores, -1), values)[:, :num_kv_heads].transpose(0, 1)


def _score(queries: Tensor, keys: Tensor) -> Tensor:
    """queries · keysᵀ of [A, B, M, D] and [A, B, L, D] by A products of B pairs each, B ≥ 2."""
    scores = queries.new_empty((*queries.shape[:3], keys.shape[2]))
    for part, q, k in zip(scores, queries, keys, strict=True):
        torch.bmm(q, k.transpose(1, 2), out=part)
    return scores


def _adjust(scores: Tensor, group: Group, soft_cap: float) -> None:
    """Caps, slopes and masks, in place. scores: [kv_heads, n, M, L], already divided by the cap."""
    if soft_cap:
        scores.tanh_().mul_(soft_cap)
    if group.slopes is not None:
        # A product and a sum apart: as one operation they round otherwise at the end of a vector.
        distances = torch.arange(group.num_keys, dtype=torch.float32) - group.slopes.last_keys
        slopes = group.slopes.slopes.expand(scores.shape[0], -1, -1, -1)
        for part, slope in zip(scores, slopes, strict=True):
            part.add_(distances * slope)
    if group.window_bias is not None:
        scores[..., : group.window_bias.shape[-1]].add_(group.window_bias)
    scores[..., group.num_keys - group.bias.shape[-1] :].add_(group.bias)


def _weigh(weights: Tensor, values: Tensor) -> Tensor:
    """weights · values of [A, B, M, L] and [A, B, L, D], L summed in order."""
    num_keys = values.shape[2]
    out = weights.new_empty((*weights.shape[:3], values.shape[3]))
    for part, w, v in zip(out, weights, values, strict=True):
        torch.bmm(w[:, :, :KEY_TILE], v[:, :KEY_TILE], out=part)
        for start in range(KEY_TILE, num_keys, KEY_TILE):
            end = start + KEY_TILE
            part.baddbmm_(w[:, :, start:end], v[:, start:end])
    return out
