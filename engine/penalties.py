"""Penalty parameters by row, and the tokens that they fall on, counted from the token buffer.

Nothing is kept between steps but the parameters: a sequence that comes back after a preemption, or from an
earlier run's partial output, is counted like any other.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from engine.request import RequestParams
from kernels.penalty import SeenTokens

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Ints32 = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


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
    """Repetition, frequency and presence penalties of every row."""

    def __init__(self, num_rows: int) -> None:
        self._repetition: Floats = np.ones(num_rows, dtype=np.float32)
        self._frequency: Floats = np.zeros(num_rows, dtype=np.float32)
        self._presence: Floats = np.zeros(num_rows, dtype=np.float32)

    def set_row(self, row: int, params: RequestParams) -> bool:
        """Whether the row has any penalty."""
        self._repetition[row] = params.repetition_penalty
        self._frequency[row] = params.frequency_penalty
        self._presence[row] = params.presence_penalty
        return params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0

    def seen(self, positions: Ints, rows: Ints, buffer: TokenBuffer, vocab_size: int) -> SeenTokens | None:
        """What penalties change in the logits of a step, in which `rows` stand at `positions`; None: nothing.

        Sorts these rows' tokens; the prompt's are among them only where the repetition penalty is set.
        """
        prompts = buffer.num_prompt_tokens[rows]
        starts = np.where(self._repetition[rows] != 1, 0, prompts)
        counts = buffer.num_tokens[rows] - starts
        ends = counts.cumsum()
        if ends[-1] == 0:
            return None
        owner = np.repeat(np.arange(len(rows)), counts)
        column = np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
        is_output = column >= prompts[owner]
        pair = owner * vocab_size + buffer.tokens[rows[owner], column]
        keys = pair * 2 + is_output
        keys.sort()
        pair = keys >> 1
        first = np.flatnonzero(np.concatenate(([True], pair[1:] != pair[:-1])))
        output_counts = np.add.reduceat(keys & 1, first)
        owner, token = np.divmod(pair[first], vocab_size)
        row = rows[owner]
        return SeenTokens(
            index=torch.from_numpy(positions[owner] * vocab_size + token),
            output_counts=_tensor(output_counts),
            repetition=_tensor(self._repetition[row]),
            frequency=_tensor(self._frequency[row]),
            presence=_tensor(self._presence[row]),
        )


def _tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32, copy=False))
