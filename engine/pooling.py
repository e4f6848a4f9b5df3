"""Vectors of `embed` requests: the hidden states of a prompt's tokens, pooled, over any number of chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.batch import NewRow


class Pooler:
    """Owns the wishes, and the sums begun, of the rows that embed."""

    def __init__(self) -> None:
        self._wishes: dict[int, NewRow] = {}
        self._sums: dict[int, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._wishes)

    def set_row(self, new: NewRow) -> None:
        """A sequence starts in a row, or starts again."""
        self._sums.pop(new.row, None)
        self._wishes.pop(new.row, None)
        if new.kind == "embed":
            self._wishes[new.row] = new

    def add(self, row: int, hidden: Tensor, num_computed: int) -> list[float] | None:
        """hidden: [T, hidden_size], of the tokens that make the row's computed ones `num_computed`.

        Returns the vector with the prompt's last token, else None. Sums are in float64, so that chunks of
        any size round to the same float32.
        """
        new = self._wishes.get(row)
        if new is None:
            return None
        if new.params.pooling == "mean":
            chunk = hidden.to(torch.float64).sum(0)
            before = self._sums.get(row)
            self._sums[row] = chunk if before is None else before.add_(chunk)
        if num_computed < new.num_prompt_tokens:
            return None
        if new.params.pooling == "mean":
            vector = self._sums.pop(row) / new.num_prompt_tokens
        else:
            vector = hidden[-1].to(torch.float64)
        del self._wishes[row]
        if new.params.normalize:
            vector = vector / vector.norm().clamp_min(1e-12)
        return vector.to(torch.float32).tolist()
