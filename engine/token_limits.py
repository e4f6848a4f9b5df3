"""What a row may not sample, and what it is biased towards: allowed ids, bad words, min_tokens, logit_bias.

Few rows have any of these, so they are kept by row in dicts and cost nothing to the others. What they change
is gathered into flat indices (position · V + token) first and applied to all rows at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from engine.penalties import Floats, Ints, TokenBuffer
from engine.request import RequestParams
from engine.transfer import Upload, share


@dataclass(frozen=True, slots=True)
class BannedEnds:
    """End tokens that min_tokens forbids in a step, and the logits that they had."""

    positions: Tensor
    """[N] int64: of their rows in the step."""
    index: Tensor
    """[N] int64: position · V + token."""
    logits: Tensor
    """[N] float32."""


class TokenLimits:
    """Allowed ids, bad words, biases and end tokens of the rows that have them."""

    def __init__(self, eos_token_ids: Sequence[int], upload: Upload = share) -> None:
        self._upload = upload
        self._eos_token_ids = tuple(eos_token_ids)
        self._allowed: dict[int, Ints] = {}
        self._bad_words: dict[int, list[tuple[list[int], int]]] = {}
        self._bias: dict[int, tuple[Ints, Floats]] = {}
        self._ends: dict[int, tuple[int, Ints]] = {}

    def set_row(self, row: int, params: RequestParams) -> bool:
        """Takes a new sequence's parameters. Whether it has any limit or bias."""
        for of_rows in (self._allowed, self._bad_words, self._bias, self._ends):
            of_rows.pop(row, None)
        if params.allowed_token_ids:
            self._allowed[row] = np.unique(np.array(params.allowed_token_ids, dtype=np.int64))
        if params.bad_words:
            self._bad_words[row] = [(list(word[:-1]), word[-1]) for word in params.bad_words]
        if params.logit_bias:
            ids = np.array(list(params.logit_bias), dtype=np.int64)
            self._bias[row] = ids, np.array(list(params.logit_bias.values()), dtype=np.float32)
        ends = {*self._eos_token_ids, *params.stop_token_ids}
        if params.min_tokens > 0 and ends:
            self._ends[row] = params.min_tokens, np.array(sorted(ends), dtype=np.int64)
        return any(row in of_rows for of_rows in (self._allowed, self._bad_words, self._bias, self._ends))

    def mask(self, logits: Tensor, positions: Ints, rows: Ints, buffer: TokenBuffer) -> None:
        """Allowed ids and bad words: sets what may not come to -inf, in place. logits: [R, V], contiguous."""
        flat, vocab_size = logits.view(-1), logits.shape[1]
        placed = list(zip(positions.tolist(), rows.tolist(), strict=True))
        allowed = [(position, self._allowed[row]) for position, row in placed if row in self._allowed]
        if allowed:
            index, of_rows = self._upload(
                _flat_index(allowed, vocab_size), np.array([position for position, _ in allowed])
            )
            kept = flat[index]
            logits.index_fill_(0, of_rows, -math.inf)
            flat[index] = kept
        banned = [(position, self._banned(row, buffer)) for position, row in placed if row in self._bad_words]
        if banned:
            (index,) = self._upload(_flat_index(banned, vocab_size))
            flat.index_fill_(0, index, -math.inf)

    def bias(self, logits: Tensor, positions: Ints, rows: Ints) -> None:
        """Adds logit_bias, in place. logits: [R, V], contiguous."""
        biased = [
            (position, *self._bias[row])
            for position, row in zip(positions.tolist(), rows.tolist(), strict=True)
            if row in self._bias
        ]
        if biased:
            index, biases = self._upload(
                _flat_index([(position, ids) for position, ids, _ in biased], logits.shape[1]),
                np.concatenate([bias for _, _, bias in biased]),
            )
            logits.view(-1).index_add_(0, index, biases)

    def ban_ends(self, logits: Tensor, positions: Ints, rows: Ints, buffer: TokenBuffer) -> BannedEnds | None:
        """min_tokens: sets end and stop tokens to -inf where too few tokens are out, in place; None: nowhere.

        As in vLLM the model's end tokens are banned with ignore_eos, too. logits: [R, V], contiguous.
        """
        ends: list[tuple[int, Ints]] = []
        for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
            min_tokens, ids = self._ends.get(row, (0, None))
            if ids is not None and buffer.num_tokens[row] - buffer.num_prompt_tokens[row] < min_tokens:
                ends.append((position, ids))
        if not ends:
            return None
        repeated = np.repeat([position for position, _ in ends], [len(ids) for _, ids in ends])
        index, of_rows = self._upload(_flat_index(ends, logits.shape[1]), repeated.astype(np.int64))
        flat = logits.view(-1)
        before = flat[index]
        flat.index_fill_(0, index, -math.inf)
        return BannedEnds(of_rows, index, before)

    def _banned(self, row: int, buffer: TokenBuffer) -> Ints:
        """Last tokens of the bad words whose other tokens the output ends with. The prompt does not count."""
        words = self._bad_words[row]
        end = int(buffer.num_tokens[row])
        start = max(int(buffer.num_prompt_tokens[row]), end - max(len(begin) for begin, _ in words))
        tail: list[int] = buffer.tokens[row, start:end].tolist()
        banned = [
            last
            for begin, last in words
            if len(begin) <= len(tail) and tail[len(tail) - len(begin) :] == begin
        ]
        return np.array(banned, dtype=np.int64)


def _flat_index(of_rows: Sequence[tuple[int, Ints]], vocab_size: int) -> Ints:
    return np.concatenate([position * vocab_size + ids for position, ids in of_rows])
