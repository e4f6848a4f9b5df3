"""The mutable state of a request's samples while the engine runs them."""

from __future__ import annotations

from collections.abc import Set

from engine.constraint import Constraint
from engine.request import Output, Request, Sample, TokenLogprobs

NO_ROW = -1
NO_STEP = -1
NOT_STARTED = -1
NEVER = 2**62


class Sequence:
    """Tokens, blocks and progress of one sample.

    Tokens *scheduled* run ahead of tokens *known*: a step samples a token, and the step after it may be
    scheduled before that token has reached the host. Attributes, not properties: 256 of them are read in
    every step.
    """

    __slots__ = (
        "block_hashes",
        "block_table",
        "constraint",
        "decodes_until",
        "end_ids",
        "ended",
        "eos_token_ids",
        "family",
        "first_hash",
        "index",
        "is_plain",
        "keeps_at",
        "max_num_tokens",
        "needs_whole_prompt",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_in_flight",
        "num_kept_blocks",
        "num_overtaken",
        "num_prompt_tokens",
        "num_retired_tokens",
        "num_tokens",
        "prompt_logprobs",
        "prompt_step",
        "request",
        "row",
        "serial",
        "shares_prompt",
        "token_ids",
    )

    def __init__(self, family: Family, sample: Sample, eos_token_ids: Set[int], window: int) -> None:
        request = family.request
        params = request.params
        generates = request.kind == "generate"
        self.family = family
        self.request = request
        self.index = sample.index
        self.token_ids = [*request.prompt_token_ids, *(sample.output_token_ids if generates else ())]
        """Known tokens: prompt, then output."""
        self.num_tokens = len(self.token_ids)
        """Known tokens, and those that steps in flight sample."""
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.max_num_tokens = self.num_prompt_tokens + 1
        if generates:
            self.max_num_tokens = min(self.num_prompt_tokens + params.max_tokens, window)
        self.end_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else eos_token_ids
        )
        self.eos_token_ids = eos_token_ids
        """The model's own, whether they end it or not."""
        self.constraint: Constraint | None = None
        self.num_computed_tokens = 0
        """Tokens whose keys and values are in the cache, or will be when the steps in flight are done."""
        self.num_retired_tokens = 0
        """Those of them that no step in flight has still to write."""
        self.num_in_flight = 0
        """Steps scheduled and not yet retired that use the row and the blocks."""
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []
        """Of its full blocks of known tokens, as far as they were needed; none without a prefix cache."""
        self.first_hash: bytes | None = None
        """The first of them, if it may look for it."""
        self.num_kept_blocks = 0
        """Blocks at the head of the table that the prefix cache has heard of."""
        self.keeps_at = NEVER
        """Retired tokens at which the next block is full."""
        self.row = NO_ROW
        self.serial = 0
        """Counts starts: the higher, the later it was admitted."""
        self.num_overtaken = 0
        """Others that started while this one was the first in the queue."""
        self.prompt_step = NO_STEP
        """The step that computes the last of its prompt: siblings may share the prompt's blocks after it."""
        self.decodes_until = 0
        """A decode of a token below this index needs nothing but a place in the step."""
        self.num_cached_tokens = NOT_STARTED
        """Prompt tokens found in the prefix cache when it first started."""
        self.is_plain = False
        """Its tokens need no look at logprobs, grammar or repetition, and its first output is out."""
        self.prompt_logprobs: list[TokenLogprobs] = []
        """Gathered so far, where this is the sample that they come with."""
        self.needs_whole_prompt = params.pooling == "mean" and request.kind == "embed"
        """Each prompt position must be computed in its own row: nothing may be found or shared."""
        self.shares_prompt = not self.needs_whole_prompt
        self.ended = False
        """Finished or aborted: its results are dropped, and it goes when nothing of it is in flight."""

    @property
    def num_output_tokens(self) -> int:
        """Known ones."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_left(self) -> int:
        """Prompt tokens and, at most, output tokens that a start from nothing has before it."""
        return self.num_prompt_tokens + self.max_num_tokens - len(self.token_ids)

    def take_prompt_logprobs(self) -> list[TokenLogprobs]:
        """The prompt's logprobs, if they are its to give and have not been given."""
        if self.family.scorer is not self or not self.needs_whole_prompt:
            return []
        logprobs, self.prompt_logprobs = self.prompt_logprobs, []
        assert len(logprobs) == self.num_prompt_tokens - 1, "prompt logprobs are missing or double"
        self.needs_whole_prompt = False
        return logprobs

    def take_num_cached_tokens(self) -> int:
        """The hit at its first start, for its first output; 0 after that."""
        num_cached_tokens, self.num_cached_tokens = self.num_cached_tokens, 0
        request = self.request
        params = request.params
        self.is_plain = self.constraint is None and params.logprobs is None and params.repetition is None
        return num_cached_tokens

    def restart(self) -> None:
        """Forgets what was computed; what was generated stays."""
        assert self.num_in_flight == 0
        self.num_computed_tokens = 0
        self.num_retired_tokens = 0
        self.num_kept_blocks = 0
        self.keeps_at = NEVER
        self.decodes_until = 0
        self.prompt_step = NO_STEP
        self.prompt_logprobs = []
        self.block_table = []
        self.row = NO_ROW


class Family:
    """The samples of one request: they share their prompt's blocks."""

    __slots__ = ("leader", "live", "request", "scorer", "withheld")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.live: dict[int, Sequence] = {}
        """By sample index: not yet ended."""
        self.leader: Sequence | None = None
        """A running one whose prompt the others share: they wait until it is scheduled through."""
        self.scorer: Sequence | None = None
        """The one that prompt logprobs come with."""
        self.withheld: Output | None = None
        """The last sample's end, until the prompt logprobs are there to come with it."""

    def forget(self, seq: Sequence) -> None:
        """A sample has ended; nothing here points at it any more."""
        del self.live[seq.index]
        if self.scorer is seq:
            self.scorer = None
        if self.leader is seq:
            self.elect()

    def elect(self) -> None:
        """Looks for another leader among those that run, if possible one whose prompt is computed."""
        running = [seq for seq in self.live.values() if seq.row != NO_ROW and seq.shares_prompt]
        self.leader = max(running, key=lambda seq: seq.num_computed_tokens, default=None)
