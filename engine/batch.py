"""What one step runs and what comes of it: plain ints, and only what changed since the step before.

`Batch` crosses scheduler → runner, `StepResult` crosses back.
"""

from __future__ import annotations

from msgspec import Struct

from engine.request import RequestKind, RequestParams, TokenLogprobs

NO_TOKEN = -1
"""What a row samples when its logits are not finite."""

NOTHING_ALLOWED = -2
"""What a row samples when masks, bans and allowed ids leave nothing."""


class NewRow(Struct, frozen=True, kw_only=True):
    """A sequence that starts, or starts again after a preemption, in a row of the runner's buffers."""

    row: int
    token_ids: list[int]
    """Prompt and the output known so far."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """How many tokens already have keys and values in `block_table`."""
    block_table: list[int] = []
    """Blocks that it begins with, shared with others or found in the prefix cache: they hold those tokens."""
    params: RequestParams
    sample: int = 0
    kind: RequestKind = "generate"


class CopiedBlock(Struct, frozen=True, array_like=True):
    """Entry `index` of a row's table was shared and is about to be written: it becomes a copy of its own."""

    row: int
    index: int
    source: int
    target: int


class Batch(Struct, frozen=True, kw_only=True):
    """One step. The runner applies `retired_rows`, `new_rows`, `copied_blocks` and `appended_blocks` in this
    order, then runs `rows`. A batch without rows carries no changes: nobody runs it.

    Token ids of decodes are not here: the runner wrote them into its own buffer when it sampled them, so that
    a step can be scheduled before the one before it is known.
    """

    retired_rows: list[int]
    new_rows: list[NewRow]
    copied_blocks: list[CopiedBlock]
    appended_blocks: list[tuple[int, list[int]]]
    """Row, and the fresh blocks that go to the end of its table."""
    rows: list[int]
    """Rows with tokens in this step, in batch order."""
    num_scheduled_tokens: list[int]
    """Of each of `rows`: the tokens that follow those already computed."""
    sampled_rows: list[int]
    """Rows, in batch order, whose last token's logits are sampled: all their tokens are computed by then.
    Rows that only score or embed are never among them."""


class StepResult(Struct, frozen=True, kw_only=True):
    """What a step gave. Rows without a wish have no entry in the dicts."""

    token_ids: list[int]
    """One sampled token for each of `Batch.sampled_rows`, in that order."""
    logprobs: dict[int, TokenLogprobs] = {}
    """By row: of the sampled token."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    """By row: of the prompt's tokens that this step's logits predict, in order."""
    broken_rows: list[int] = []
    """Of those not sampled: rows whose hidden states are not finite. Sampled ones have NO_TOKEN."""
    embeddings: dict[int, list[float]] = {}
    """By row: the pooled vector, in the step that computes the prompt's last token."""
