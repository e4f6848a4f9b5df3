"""The block manager: which KV cache blocks are free, how many tables hold each of the others, and which
known tokens a full block holds, so that another sequence may begin with it.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b

NULL_BLOCK = 0
"""Never allocated: unused table entries point at it, so that every index in a table is a valid one."""

_HASH_BYTES = 32
"""Prompts come from strangers: a collision would show one's cache to another, so it must be out of reach."""


class BlockManager:
    """Hands out blocks 1 … num_blocks of `block_size` tokens each. A block is free when its count is 0.

    A free block whose tokens are known stays findable until it is handed out again: those without known
    tokens go first, then the least recently freed one. Every operation on a block takes constant time.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_cache: bool = True) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._free: deque[int] = deque(range(1, num_blocks + 1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        """Free and findable, least recently freed first."""
        self._ref_counts: list[int] = [0] * (num_blocks + 1)
        self._hashes: list[bytes | None] = [None] * (num_blocks + 1)
        self._by_hash: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._evictable)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int) -> list[int]:
        """Takes free blocks; what they held is forgotten. The caller has looked at `num_free`."""
        assert num_blocks <= self.num_free, "allocated more blocks than are free"
        blocks: list[int] = []
        for _ in range(num_blocks):
            block = self._free.popleft() if self._free else self._evict()
            self._ref_counts[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more table holds these blocks: others hold them, or they are free and were found by hash."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                assert block in self._evictable, "shared a free block"
                del self._evictable[block]
            self._ref_counts[block] += 1

    def release(self, table: Sequence[int]) -> None:
        """One table lets go of these blocks, which are in its order; what nothing holds any more is free.

        The tail goes first, and so is evicted first: a prefix is of use without its tail, not without its
        head.
        """
        for block in reversed(table):
            count = self._ref_counts[block] - 1
            assert count >= 0, "released a free block"
            self._ref_counts[block] = count
            if count == 0:
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._evictable[block] = None

    def is_shared(self, block: int) -> bool:
        """Whether more than one table holds it, so that none may write to it."""
        return self._ref_counts[block] > 1

    def num_unheld(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are free: to share them takes them from the free ones."""
        counts = self._ref_counts
        return sum(counts[block] == 0 for block in blocks)

    def is_known(self, block_hash: bytes | None) -> bool:
        """Whether a block with this hash can be found."""
        return block_hash in self._by_hash

    def find(self, block_hashes: Sequence[bytes], limit: int) -> list[int]:
        """The blocks that hold the longest known beginning of a sequence, at most `limit` of them."""
        blocks: list[int] = []
        for i in range(min(limit, len(block_hashes))):
            block = self._by_hash.get(block_hashes[i])
            if block is None:
                break
            blocks.append(block)
        return blocks

    def keep(self, block: int, block_hash: bytes) -> None:
        """A held block is full, its tokens are known and computed: from now on it can be found.

        The first of several blocks with the same tokens is the one that is found.
        """
        assert self.prefix_cache
        assert self._ref_counts[block] > 0, "kept a free block"
        if self._hashes[block] is None and block_hash not in self._by_hash:
            self._hashes[block] = block_hash
            self._by_hash[block_hash] = block

    def extend_hashes(self, block_hashes: list[bytes], token_ids: Sequence[int]) -> None:
        """Appends the hashes of these tokens' further full blocks. Each covers all tokens before it too."""
        size = self.block_size
        num_hashed = len(block_hashes) * size
        if len(token_ids) - num_hashed < size:
            return
        tokens = array("i", token_ids[num_hashed:])
        data = tokens.tobytes()
        num_bytes = size * tokens.itemsize
        parent = block_hashes[-1] if block_hashes else b""
        for start in range(0, len(data) - num_bytes + 1, num_bytes):
            parent = blake2b(parent + data[start : start + num_bytes], digest_size=_HASH_BYTES).digest()
            block_hashes.append(parent)

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Asserts that counts match the tables given (all there are), that free and held make up the whole,
        and that hashes and blocks point at each other."""
        held = Counter(block for table in tables for block in table)
        assert NULL_BLOCK not in held, "a table holds the null block"
        assert self._ref_counts[NULL_BLOCK] == 0
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        assert not free & self._evictable.keys(), "a block is free in two ways"
        for block in range(1, self.num_blocks + 1):
            assert self._ref_counts[block] == held[block], f"block {block}: counted wrong"
            block_hash = self._hashes[block]
            is_free = held[block] == 0
            assert (block in free) == (is_free and block_hash is None), f"block {block}: not in its place"
            assert (block in self._evictable) == (is_free and block_hash is not None), f"block {block}: lost"
            assert block_hash is None or self._by_hash.get(block_hash) == block, f"block {block}: not found"
        assert len(self._by_hash) == sum(block_hash is not None for block_hash in self._hashes)
        assert self.prefix_cache or not self._by_hash

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        block_hash = self._hashes[block]
        assert block_hash is not None
        del self._by_hash[block_hash]
        self._hashes[block] = None
        return block
