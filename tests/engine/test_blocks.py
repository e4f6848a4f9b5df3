"""Blocks: counts, hashes, and who is evicted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.blocks import BlockManager


def hashes_of(manager: BlockManager, token_ids: list[int]) -> list[bytes]:
    block_hashes: list[bytes] = []
    manager.extend_hashes(block_hashes, token_ids)
    return block_hashes


def kept(manager: BlockManager, token_ids: list[int]) -> list[int]:
    """A table that holds these tokens' full blocks, all findable."""
    block_hashes = hashes_of(manager, token_ids)
    table = manager.allocate(len(block_hashes))
    for block, block_hash in zip(table, block_hashes, strict=True):
        manager.keep(block, block_hash)
    return table


@pytest.mark.parametrize("released", [0, 1])
def test_releasing_what_is_free_is_our_own_bug(released: int) -> None:
    manager = BlockManager(2, 4)
    manager.release(manager.allocate(2)[:released])
    with pytest.raises(AssertionError, match="released a free block"):
        manager.release([1, 1])


def test_sharing_what_is_free_and_unknown_is_our_own_bug() -> None:
    manager = BlockManager(2, 4)
    with pytest.raises(AssertionError, match="shared a free block"):
        manager.share([1])


def test_shared_blocks_are_free_after_the_last_table() -> None:
    manager = BlockManager(3, 4)
    table = manager.allocate(2)
    manager.share(table[:1])
    assert manager.is_shared(table[0])
    assert not manager.is_shared(table[1])
    manager.check_integrity([table, table[:1]])
    manager.release(table)
    assert manager.num_free == 2
    manager.check_integrity([table[:1]])
    manager.release(table[:1])
    assert manager.num_free == 3


@given(
    tokens=st.lists(st.integers(0, 2**31 - 1), max_size=20),
    others=st.lists(st.integers(0, 2**31 - 1), max_size=20),
    size=st.integers(1, 5),
    cut=st.integers(0, 20),
)
def test_hashes_are_equal_exactly_where_all_tokens_before_are(
    tokens: list[int], others: list[int], size: int, cut: int
) -> None:
    manager = BlockManager(1, size)
    mixed = tokens[:cut] + others
    ours, theirs = hashes_of(manager, tokens), hashes_of(manager, mixed)
    assert len(ours) == len(tokens) // size
    for i, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        end = (i + 1) * size
        assert (a == b) == (tokens[:end] == mixed[:end])
    stepwise: list[bytes] = []
    for end in range(len(tokens) + 1):
        manager.extend_hashes(stepwise, tokens[:end])
    assert stepwise == ours


def test_a_released_prefix_is_found_and_revived() -> None:
    manager = BlockManager(4, 2)
    table = kept(manager, [1, 2, 3, 4])
    manager.release(table)
    assert manager.num_free == 4
    found = manager.find(hashes_of(manager, [1, 2, 3, 4, 5, 6]), limit=3)
    assert found == table
    assert manager.num_unheld(found) == 2
    manager.share(found)
    assert manager.num_free == 2
    manager.check_integrity([found])


def test_a_search_stops_at_its_limit_and_at_the_first_block_that_is_not_there() -> None:
    manager = BlockManager(4, 2)
    table = kept(manager, [1, 2, 3, 4])
    assert manager.find(hashes_of(manager, [1, 2, 3, 4]), limit=1) == table[:1]
    assert manager.find(hashes_of(manager, [9, 9, 3, 4]), limit=2) == []
    assert manager.find(hashes_of(manager, [1, 2, 9, 9]), limit=2) == table[:1]


def test_the_first_of_two_blocks_with_the_same_tokens_is_found() -> None:
    manager = BlockManager(4, 2)
    first, second = kept(manager, [1, 2]), kept(manager, [1, 2])
    assert manager.find(hashes_of(manager, [1, 2]), limit=1) == first
    manager.check_integrity([first, second])
    manager.release(second)
    manager.check_integrity([first])
    assert manager.find(hashes_of(manager, [1, 2]), limit=1) == first


def test_unknown_blocks_go_first_then_the_least_recently_freed_tail_first() -> None:
    manager = BlockManager(5, 2)
    old, new = kept(manager, [1, 1, 1, 1]), kept(manager, [2, 2, 2, 2])
    unknown = manager.allocate(1)
    manager.release(old)
    manager.release(new)
    manager.release(unknown)
    assert manager.allocate(5) == [*unknown, old[1], old[0], new[1], new[0]]
    assert manager.find(hashes_of(manager, [2, 2]), limit=1) == []
    manager.check_integrity([range(1, 6)])


def test_a_hit_makes_blocks_recent() -> None:
    manager = BlockManager(2, 2)
    first, second = kept(manager, [1, 1]), kept(manager, [2, 2])
    manager.release(first)
    manager.release(second)
    manager.share(first)
    manager.release(first)
    assert manager.allocate(1) == second
