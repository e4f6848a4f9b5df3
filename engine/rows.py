"""The runner's memory of what runs: tokens, block tables and progress by row, kept up by batches."""

from __future__ import annotations

import numpy as np

from engine.batch import Batch, NewRow
from engine.blocks import NULL_BLOCK

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Ints32 = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


class Rows:
    """Buffers of `num_rows` rows of up to `max_len` tokens and `width` blocks. A step's work on them is a few
    vector operations, however long its sequences are."""

    def __init__(self, num_rows: int, max_len: int, width: int) -> None:
        self.tokens: Ints32 = np.zeros((num_rows, max_len), dtype=np.int32)
        """Known and sampled tokens: prompt, then output."""
        self.num_tokens: Ints = np.zeros(num_rows, dtype=np.int64)
        """Of each row, with those that are being sampled."""
        self.num_known: Ints = np.zeros(num_rows, dtype=np.int64)
        """Of `num_tokens`, those that the buffer holds: the last may still be on a device."""
        self.num_prompt_tokens: Ints = np.zeros(num_rows, dtype=np.int64)
        self.num_computed: Ints = np.zeros(num_rows, dtype=np.int64)
        """Tokens whose keys and values are in the cache."""
        self.tables: Ints32 = np.full((num_rows, width), NULL_BLOCK, dtype=np.int32)
        self.table_changes: list[tuple[int, list[int]]] = []
        """What `apply` last wrote to the tables: row · width + index, and the blocks from there on."""
        self._width = width
        self._num_blocks = [0] * num_rows

    def apply(self, batch: Batch) -> None:
        """Takes over what has changed since the step before."""
        self.table_changes = []
        for row in batch.retired_rows:
            self.tables[row, : self._num_blocks[row]] = NULL_BLOCK
            self._num_blocks[row] = 0
        for new in batch.new_rows:
            self._start(new)
        for copied in batch.copied_blocks:
            assert self.tables[copied.row, copied.index] == copied.source, "copied a block that is not there"
            self.tables[copied.row, copied.index] = copied.target
            self.table_changes.append((copied.row * self._width + copied.index, [copied.target]))
        for row, blocks in batch.appended_blocks:
            self._append(row, blocks)

    def append_tokens(self, rows: Ints, token_ids: Ints) -> None:
        """One sampled token more for each of these rows."""
        self.fill(rows, self.reserve(rows), token_ids)

    def reserve(self, rows: Ints) -> Ints:
        """Counts one token more of each of these rows, which `fill` tells later. Returns their positions."""
        positions = self.num_tokens[rows]
        self.num_tokens[rows] = positions + 1
        return positions

    def fill(self, rows: Ints, positions: Ints, token_ids: Ints) -> None:
        """The tokens at reserved positions, which are each row's next ones to be known."""
        self.tokens[rows, positions] = token_ids
        self.num_known[rows] = positions + 1

    def _start(self, new: NewRow) -> None:
        assert self._num_blocks[new.row] == 0, "a row starts with another sequence's blocks"
        num_tokens = len(new.token_ids)
        self.tokens[new.row, :num_tokens] = new.token_ids
        self.num_tokens[new.row] = self.num_known[new.row] = num_tokens
        self.num_prompt_tokens[new.row] = new.num_prompt_tokens
        self.num_computed[new.row] = new.num_computed_tokens
        self._append(new.row, new.block_table)

    def _append(self, row: int, blocks: list[int]) -> None:
        start = self._num_blocks[row]
        end = start + len(blocks)
        self.tables[row, start:end] = blocks
        self._num_blocks[row] = end
        if blocks:
            self.table_changes.append((row * self._width + start, blocks))
