"""The block manager: which KV cache blocks are free, and how many tables hold each of the others."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

NULL_BLOCK = 0
"""Never allocated: unused table entries point at it, so that every index in a table is a valid one."""


class BlockManager:
    """Hands out blocks 1 … num_blocks of `block_size` tokens each. A block is free when its count is 0.

    Counts are what lets several tables share a block; today each block has one owner.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: deque[int] = deque(range(1, num_blocks + 1))
        self._ref_counts: list[int] = [0] * (num_blocks + 1)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int) -> list[int]:
        """Takes free blocks, least recently freed first. The caller has looked at `num_free`."""
        assert num_blocks <= len(self._free), "allocated more blocks than are free"
        blocks = [self._free.popleft() for _ in range(num_blocks)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """One more table holds this block, which some table holds already."""
        assert self._ref_counts[block] > 0, "shared a free block"
        self._ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One table lets go of these blocks; those that nothing holds any more become free."""
        for block in blocks:
            count = self._ref_counts[block] - 1
            assert count >= 0, "released a free block"
            self._ref_counts[block] = count
            if count == 0:
                self._free.append(block)

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Asserts that counts match the tables given (all there are), and free and held make up the whole."""
        held = Counter(block for table in tables for block in table)
        assert NULL_BLOCK not in held, "a table holds the null block"
        assert self._ref_counts[NULL_BLOCK] == 0
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        for block in range(1, self.num_blocks + 1):
            assert self._ref_counts[block] == held[block], f"block {block}: counted wrong"
            assert (block in free) == (held[block] == 0), f"block {block}: free and held disagree"
