"""A batch in the making."""

from __future__ import annotations

from engine.batch import Batch, CopiedBlock, NewRow
from engine.sequence import Sequence


class StepBuilder:
    """Collects what one step runs, and what changes before it."""

    def __init__(self, number: int, budget: int) -> None:
        self.number = number
        """Counts steps."""
        self.budget = budget
        """Tokens that it has still room for."""
        self.preempted = False
        self.new_rows: list[NewRow] = []
        self.copied_blocks: list[CopiedBlock] = []
        self.appended_blocks: list[tuple[int, list[int]]] = []
        self.rows: list[int] = []
        self.num_scheduled_tokens: list[int] = []
        self.sampled_rows: list[int] = []

    def run(self, seq: Sequence, num_tokens: int) -> None:
        """Puts the next tokens of a sequence into the step; its blocks are there."""
        self.rows.append(seq.row)
        self.num_scheduled_tokens.append(num_tokens)
        self.budget -= num_tokens
        was_in_prompt = seq.num_computed_tokens < seq.num_prompt_tokens
        seq.num_computed_tokens += num_tokens
        seq.num_in_flight += 1
        if seq.num_computed_tokens == seq.num_tokens and seq.request.kind == "generate":
            self.sampled_rows.append(seq.row)
            seq.num_tokens += 1
        if seq.num_computed_tokens >= seq.num_prompt_tokens and (was_in_prompt or seq.prompt_step < 0):
            seq.prompt_step = self.number

    def run_decodes(self, seqs: list[Sequence]) -> None:
        """`run` with one token each, for sequences whose `decodes_until` says that nothing else is to do."""
        if len(seqs) > self.budget:
            seqs = seqs[: self.budget]
        rows = [seq.row for seq in seqs]
        for seq in seqs:
            seq.num_computed_tokens += 1
            seq.num_tokens += 1
            seq.num_in_flight += 1
        self.rows += rows
        self.sampled_rows += rows
        self.num_scheduled_tokens += [1] * len(rows)
        self.budget -= len(rows)

    def finish(self, retired_rows: list[int]) -> Batch:
        return Batch(
            retired_rows=retired_rows,
            new_rows=self.new_rows,
            copied_blocks=self.copied_blocks,
            appended_blocks=self.appended_blocks,
            rows=self.rows,
            num_scheduled_tokens=self.num_scheduled_tokens,
            sampled_rows=self.sampled_rows,
        )
