"""A request's mutable state while the engine runs it."""

from __future__ import annotations

from engine.request import Request

NO_ROW = -1


class Sequence:
    """Tokens, blocks and progress of one request.

    Tokens *scheduled* run ahead of tokens *known* by `num_pending`: a step samples a token, and the step
    after it may be scheduled before that token has reached the host.
    """

    __slots__ = (
        "block_table",
        "ended",
        "num_computed_tokens",
        "num_in_flight",
        "num_pending",
        "num_prompt_tokens",
        "request",
        "row",
        "token_ids",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.token_ids = [*request.prompt_token_ids, *request.output_token_ids]
        """Known tokens: prompt, then output."""
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_computed_tokens = 0
        """Tokens whose keys and values are in the cache, or will be when the steps in flight are done."""
        self.num_pending = 0
        """Tokens sampled by steps in flight."""
        self.num_in_flight = 0
        """Steps scheduled and not yet retired that use the row and the blocks."""
        self.block_table: list[int] = []
        self.row = NO_ROW
        self.ended = False
        """Finished or aborted: its results are dropped, and it goes when nothing of it is in flight."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens to compute before the next one can be sampled: 1 in a decode."""
        return len(self.token_ids) + self.num_pending - self.num_computed_tokens

    def restart(self) -> None:
        """Forgets what was computed; what was generated stays."""
        assert self.num_in_flight == 0
        self.num_computed_tokens = 0
        self.block_table = []
        self.row = NO_ROW
