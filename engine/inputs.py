"""What a step's tokens need, gathered from the runner's rows: plain arrays, before they go to a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.batch import Batch
from engine.rows import Ints, Rows


@dataclass(frozen=True, slots=True)
class StepArrays:
    """B rows, T tokens, R sampled rows; int64."""

    rows: Ints
    """[B]."""
    bounds: Ints
    """[B + 1]: where each row begins and ends among the tokens."""
    ends: Ints
    """[B]: tokens of each row that are computed when the step has run."""
    token_rows: Ints
    """[T]: whose token it is."""
    token_ids: Ints
    """[T]. What another step is still sampling is not known here, and means nothing."""
    positions: Ints
    """[T]."""
    slots: Ints
    """[T]: where keys and values go, block · block_size + slot."""
    last_tokens: Ints
    """[R]: tokens whose logits are sampled."""

    @property
    def decodes_only(self) -> bool:
        """Whether every row has one token, and samples."""
        return len(self.rows) == len(self.token_rows) == len(self.last_tokens)


def gather(batch: Batch, state: Rows, block_size: int) -> StepArrays:
    """The arrays of a batch whose changes `state` has taken over; its tokens then count as computed."""
    rows = np.array(batch.rows, dtype=np.int64)
    counts = np.array(batch.num_scheduled_tokens, dtype=np.int64)
    starts = state.num_computed[rows]
    ends = starts + counts
    assert (ends <= state.num_tokens[rows]).all(), "scheduled tokens that the buffer does not hold"
    bounds = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=bounds[1:])
    if len(rows) == bounds[-1]:  # decodes only
        token_rows, positions = rows, starts
    else:
        token_rows = np.repeat(rows, counts)
        positions = np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], counts)
    blocks = state.tables[token_rows, positions // block_size].astype(np.int64)
    state.num_computed[rows] = ends
    last_tokens = bounds[1:] - 1
    if len(batch.sampled_rows) < len(batch.rows):
        last_tokens = last_tokens[np.isin(rows, np.array(batch.sampled_rows, dtype=np.int64))]
    return StepArrays(
        rows=rows,
        bounds=bounds,
        ends=ends,
        token_rows=token_rows,
        token_ids=state.tokens[token_rows, positions].astype(np.int64),
        positions=positions,
        slots=blocks * block_size + positions % block_size,
        last_tokens=last_tokens,
    )
