"""Penalty parameters by row, and the tokens that they fall on, counted from the token buffer."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engine.request import RequestParams
from engine.transfer import Upload, share
from kernels.penalty import SeenTokens

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Ints32 = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_NEVER = -(1 << 40)
_NO_ID = -1


class TokenBuffer(Protocol):
    """Prompt and output of every row, as the runner keeps them."""

    @property
    def tokens(self) -> Ints32:
        """[rows, max_len]."""
        ...

    @property
    def num_tokens(self) -> Ints:
        """[rows]: how many of them are known."""
        ...

    @property
    def num_prompt_tokens(self) -> Ints:
        """[rows]: how many of those are the prompt's."""
        ...


class Penalties:
    """Repetition, frequency and presence penalties of every row, and the different tokens that it has seen.

    Those are only a memo of what the buffer says: a step adds the one token that is new, a row that has just
    started, or started again, is counted whole. Counting every row at every step took 10 ms for 64 rows of
    1,000 tokens; a count for each token of the vocabulary would be 19 MB for 32 rows of Qwen3.
    """

    def __init__(self, num_rows: int, upload: Upload = share) -> None:
        self._upload = upload
        self._repetition: Floats = np.ones(num_rows, dtype=np.float32)
        self._frequency: Floats = np.zeros(num_rows, dtype=np.float32)
        self._presence: Floats = np.zeros(num_rows, dtype=np.float32)
        self._num_counted: Ints = np.full(num_rows, _NEVER, dtype=np.int64)
        """Tokens of the buffer that are in the memo."""
        self._num_seen: Ints = np.zeros(num_rows, dtype=np.int64)
        self._seen: Ints32 = np.empty((num_rows, 0), dtype=np.int32)
        """[rows, width]: different token ids, then _NO_ID."""
        self._counts: Floats = np.empty((num_rows, 0), dtype=np.float32)
        """[rows, width]: how often the output has them; 0 past the row's last."""

    def set_row(self, row: int, params: RequestParams) -> bool:
        """Takes a new sequence's parameters. Whether it has any penalty."""
        self._repetition[row] = params.repetition_penalty
        self._frequency[row] = params.frequency_penalty
        self._presence[row] = params.presence_penalty
        self._num_counted[row] = _NEVER
        return params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0

    def seen(self, positions: Ints, rows: Ints, buffer: TokenBuffer, vocab_size: int) -> SeenTokens | None:
        """What penalties change in a step's logits, whose `positions` are those of `rows`; None: nothing."""
        self._catch_up(rows, buffer)
        num_seen = self._num_seen[rows]
        width = int(num_seen.max())
        if width == 0:
            return None
        filled = np.arange(width) < num_seen[:, None]
        row = np.repeat(rows, num_seen)
        index = np.repeat(positions * vocab_size, num_seen) + self._seen[rows, :width][filled]
        return SeenTokens(
            *self._upload(
                index,
                self._counts[rows, :width][filled],
                self._repetition[row],
                self._frequency[row],
                self._presence[row],
            )
        )

    def _catch_up(self, rows: Ints, buffer: TokenBuffer) -> None:
        behind = buffer.num_tokens[rows] - self._num_counted[rows]
        for row in rows[(behind != 0) & (behind != 1)].tolist():
            self._count(row, buffer)
        rows = rows[behind == 1]
        if len(rows) == 0:
            return
        width = int(self._num_seen[rows].max()) + 1
        self._widen(width)
        tokens = buffer.tokens[rows, self._num_counted[rows]]
        found = self._seen[rows, :width] == tokens[:, None]
        place = np.where(found.any(1), found.argmax(1), self._num_seen[rows])
        self._seen[rows, place] = tokens
        self._counts[rows, place] += 1
        self._num_seen[rows] = np.maximum(self._num_seen[rows], place + 1)
        self._num_counted[rows] += 1

    def _count(self, row: int, buffer: TokenBuffer) -> None:
        """A row's tokens from the start; the prompt's only where the repetition penalty looks at them."""
        num_prompt_tokens, end = int(buffer.num_prompt_tokens[row]), int(buffer.num_tokens[row])
        start = 0 if self._repetition[row] != 1 else num_prompt_tokens
        ids, places = np.unique(buffer.tokens[row, start:end], return_inverse=True)
        self._widen(len(ids))
        self._seen[row, : len(ids)] = ids
        self._seen[row, len(ids) :] = _NO_ID
        self._counts[row] = np.bincount(places[num_prompt_tokens - start :], minlength=self._counts.shape[1])
        self._num_seen[row] = len(ids)
        self._num_counted[row] = end

    def _widen(self, width: int) -> None:
        """Makes room for `width` different tokens in every row."""
        missing = width - self._seen.shape[1]
        if missing > 0:
            missing = max(missing, self._seen.shape[1], 64)
            self._seen = np.pad(self._seen, ((0, 0), (0, missing)), constant_values=_NO_ID)
            self._counts = np.pad(self._counts, ((0, 0), (0, missing)))
