"""Pairs of a token and one of its experts, sorted by expert into tiles of one expert each.

Nothing leaves the device: the host knows only how many tiles there can be at most.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# pyright: reportArgumentType=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK: Final = 1024
"""Pairs that a program reads at a time."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Pair p is token p // k with its choice p % k; a tile is `block` pairs of one expert."""

    pairs: Tensor
    """[most · block] int32: a tile's pairs, and behind its last the number of pairs, for none."""
    experts: Tensor
    """[most] int32, of each tile that is used."""
    used: Tensor
    """[1] int32: how many tiles are used, the first ones."""
    most: int
    block: int


def sort_into_tiles(ids: Tensor, num_experts: int, block: int) -> Tiles:
    """ids: [T, k] int64 contiguous, T ≥ 1. One launch; pairs of one expert keep their order."""
    num_pairs, device = ids.numel(), ids.device
    most = num_pairs // block + min(num_experts, num_pairs)
    pairs = torch.empty(most * block, dtype=torch.int32, device=device)
    experts = torch.empty(most, dtype=torch.int32, device=device)
    used = torch.empty(1, dtype=torch.int32, device=device)
    _tiles_kernel[(num_experts,)](
        ids,
        pairs,
        experts,
        used,
        num_pairs,
        num_experts,
        EXPERTS=1 << num_experts.bit_length(),
        BLOCK=block,
        CHUNK=CHUNK,
    )
    return Tiles(pairs, experts, used, most, block)


@triton.jit(do_not_specialize=["num_pairs"])
def _tiles_kernel(
    ids,
    pairs,
    tile_experts,
    used,
    num_pairs,
    num_experts,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program for each expert: all count every expert's pairs, then each writes its own."""
    expert = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    counts = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, num_pairs, CHUNK):
        chunk = start + tl.arange(0, CHUNK)
        # Beyond the last pair: counted as an expert that does not exist, for which there is always room.
        picked = tl.load(ids + chunk, mask=chunk < num_pairs, other=num_experts).to(tl.int32)
        counts += tl.histogram(picked, EXPERTS)
    counts = tl.where(experts < num_experts, counts, 0)
    tiles = (counts + BLOCK - 1) // BLOCK
    if expert == 0:
        tl.store(used, tl.sum(tiles))
    first = tl.sum(tl.where(experts < expert, tiles, 0))
    count = tl.sum(tl.where(experts == expert, counts, 0))
    if count > 0:
        num_tiles = (count + BLOCK - 1) // BLOCK
        pairs += first * BLOCK
        for tile in range(num_tiles):
            tl.store(tile_experts + first + tile, expert)
        behind = count + tl.arange(0, BLOCK)
        tl.store(pairs + behind, num_pairs, mask=behind < num_tiles * BLOCK)
        written = 0
        for start in range(0, num_pairs, CHUNK):
            chunk = start + tl.arange(0, CHUNK)
            picked = tl.load(ids + chunk, mask=chunk < num_pairs, other=num_experts).to(tl.int32)
            mine = (picked == expert).to(tl.int32)
            tl.store(pairs + written + tl.cumsum(mine, 0) - 1, chunk, mask=mine != 0)
            written += tl.sum(mine)
