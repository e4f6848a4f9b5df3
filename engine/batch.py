"""What one step runs: plain ints, and only what changed since the step before. Crosses scheduler → runner."""

from __future__ import annotations

from msgspec import Struct

from engine.request import RequestParams

NO_TOKEN = -1
"""What a row samples when its logits are not finite."""


class NewRow(Struct, frozen=True, kw_only=True):
    """A sequence that starts, or starts again after a preemption, in a row of the runner's buffers."""

    row: int
    token_ids: list[int]
    """Prompt and the output known so far."""
    num_output_tokens: int
    """How many of them are output: the index of the next draw."""
    num_computed_tokens: int
    """How many of them already have keys and values in the blocks that the row is given."""
    params: RequestParams


class Batch(Struct, frozen=True, kw_only=True):
    """One step. The runner applies `retired_rows`, `new_rows` and `appended_blocks` in this order, then runs
    `rows`. A batch without rows carries no changes: nobody runs it.

    Token ids of decodes are not here: the runner wrote them into its own buffer when it sampled them, so that
    a step can be scheduled before the one before it is known.
    """

    retired_rows: list[int]
    new_rows: list[NewRow]
    appended_blocks: list[tuple[int, list[int]]]
    """Row, and the blocks that go to the end of its table."""
    rows: list[int]
    """Rows with tokens in this step, in batch order."""
    num_scheduled_tokens: list[int]
    """Of each of `rows`: the tokens that follow those already computed."""
    sampled_rows: list[int]
    """Rows, in batch order, whose last token's logits are sampled: all their tokens are computed by then."""
