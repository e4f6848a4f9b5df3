"""Admission: with what a waiting sequence would start, what that takes, and whether it had better wait."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from engine.blocks import BlockManager
from engine.sequence import NO_STEP, Sequence


class Start(NamedTuple):
    """How a sequence can start."""

    blocks: list[int]
    """The blocks that its table begins with: a sibling's, or found in the prefix cache."""
    num_computed_tokens: int
    num_needed_blocks: int
    """Free blocks that it takes until all its known tokens are computed."""
    is_sibling: bool
    """The blocks are a sibling's: nothing of its prompt counts as looked up."""


class Admission:
    """Plans starts. Knows which blocks running sequences are about to fill, so that others wait for them."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._prefilling: dict[bytes, Sequence] = {}
        """Hashes of blocks that a running sequence has not filled yet, but will: it knows their tokens."""

    def prepare(self, seq: Sequence) -> None:
        """A sequence is about to wait: hashes what it may look for."""
        if self._blocks.prefix_cache:
            self._blocks.extend_hashes(seq.block_hashes, seq.token_ids)
            looks_up = seq.num_tokens > self._blocks.block_size and not seq.needs_whole_prompt
            seq.first_hash = seq.block_hashes[0] if looks_up else None

    def plan(self, seq: Sequence, step: int, patient: bool = True) -> Start | None:
        """How a waiting sequence would start in this step; None if what it needs is just being computed.

        A sibling whose leader has its prompt computed shares it, unless more is found in the cache (its own
        blocks, after a preemption). At least the last token is left to compute: its logits are needed.
        """
        if seq.needs_whole_prompt:
            return Start([], 0, self._blocks.blocks_for(seq.num_tokens), False)
        found = self._find(seq)
        num_found = len(found) * self._blocks.block_size
        leader = seq.family.leader
        if leader is not None and seq.shares_prompt:
            num_shared = min(seq.num_prompt_tokens, seq.num_tokens - 1)
            if num_found < num_shared:
                if not NO_STEP < leader.prompt_step < step:
                    return None
                return self._start(seq, leader.block_table, num_shared, is_sibling=True)
        elif patient and self._is_prefilling(seq, len(found)):
            return None
        return self._start(seq, found, num_found, is_sibling=False)

    def prefills(self, seq: Sequence) -> None:
        """A sequence has started: others had better not compute the blocks that it is about to fill."""
        for block_hash in seq.block_hashes[len(seq.block_table) :]:
            self._prefilling.setdefault(block_hash, seq)

    def kept(self, block_hash: bytes) -> bool:
        """A block can be found now. True if somebody may have waited for it."""
        return self._prefilling.pop(block_hash, None) is not None

    def leaves(self, seq: Sequence) -> None:
        """A sequence gives up its row: nobody need wait for what it had not come to."""
        if not self._prefilling:
            return
        for block_hash in seq.block_hashes[seq.num_kept_blocks :]:
            if self._prefilling.get(block_hash) is seq:
                del self._prefilling[block_hash]

    def check_integrity(self, running: Collection[Sequence]) -> None:
        """Asserts that whoever waits for a block waits for a sequence that will fill it."""
        for block_hash, seq in self._prefilling.items():
            assert seq in running
            assert block_hash in seq.block_hashes[seq.num_kept_blocks :], "waits for a block that is there"

    def _find(self, seq: Sequence) -> list[int]:
        return self._blocks.find(seq.block_hashes, (seq.num_tokens - 1) // self._blocks.block_size)

    def _is_prefilling(self, seq: Sequence, num_found: int) -> bool:
        next_is_full = num_found < (seq.num_tokens - 1) // self._blocks.block_size
        return (
            next_is_full
            and num_found < len(seq.block_hashes)
            and seq.block_hashes[num_found] in self._prefilling
        )

    def _start(self, seq: Sequence, table: list[int], num_computed: int, is_sibling: bool) -> Start:
        blocks = table[: self._blocks.blocks_for(num_computed)]
        num_needed = self._blocks.blocks_for(seq.num_tokens) - len(blocks) + self._blocks.num_unheld(blocks)
        if num_computed % self._blocks.block_size:  # the last of them will be written to, and copied for that
            num_needed += 1
        return Start(blocks, num_computed, num_needed, is_sibling)
