"""A runner without a model: it follows batches by their deltas alone and keeps what each cache slot holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.batch import Batch, NewRow, StepResult
from engine.request import TokenLogprobs


@dataclass
class Row:
    """What the runner knows of a row."""

    new: NewRow
    tokens: list[int]
    num_computed: int
    table: list[int]
    ended: bool = False


@dataclass
class RunnerModel:
    """Slots hold chained hashes of all tokens up to theirs, as keys and values depend on all of them."""

    block_size: int
    max_num_batched_tokens: int
    max_model_len: int
    rows: dict[int, Row] = field(default_factory=dict)
    slots: dict[tuple[int, int], int] = field(default_factory=dict)
    in_flight: list[Batch] = field(default_factory=list)

    def run(self, batch: Batch, token_ids: list[int]) -> StepResult:
        """Applies a batch's changes and runs it, sampling the tokens given. Asserts what runners rely on."""
        self._apply(batch)
        assert 0 < sum(batch.num_scheduled_tokens) <= self.max_num_batched_tokens
        assert len(set(batch.rows)) == len(batch.rows)
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        embeddings: dict[int, list[float]] = {}
        sampled_rows: list[int] = []
        logprobs: dict[int, TokenLogprobs] = {}
        self._check_writers(batch)
        for row_index, count in zip(batch.rows, batch.num_scheduled_tokens, strict=True):
            row = self.rows[row_index]
            start = row.num_computed
            self._compute(row, count)
            num_prompt = row.new.num_prompt_tokens
            if row.new.params.prompt_logprobs is not None:
                predicted = range(start + 1, min(row.num_computed + 1, num_prompt))
                prompt_logprobs[row_index] = [TokenLogprobs(-float(i), 1, []) for i in predicted]
            if row.num_computed == len(row.tokens):
                if row.new.kind == "generate":
                    sampled_rows.append(row_index)
                elif row.new.kind == "embed":
                    embeddings[row_index] = [float(num_prompt)]
        assert batch.sampled_rows == sampled_rows
        for row_index, token_id in zip(sampled_rows, token_ids, strict=True):
            row = self.rows[row_index]
            row.tokens.append(max(token_id, 0))
            assert len(row.tokens) <= self.max_model_len, "a token past the window"
            if row.new.params.logprobs is not None:
                logprobs[row_index] = TokenLogprobs(-float(len(row.tokens)), 1, [])
        self.in_flight.append(batch)
        return StepResult(
            token_ids=token_ids, logprobs=logprobs, prompt_logprobs=prompt_logprobs, embeddings=embeddings
        )

    def retire(self) -> Batch:
        return self.in_flight.pop(0)

    def _apply(self, batch: Batch) -> None:
        busy = {row for other in self.in_flight for row in other.rows}
        assert not busy & set(batch.retired_rows), "a row retired while in flight"
        for row_index in batch.retired_rows:
            self.rows.pop(row_index)
        for new in batch.new_rows:
            assert new.row not in self.rows, "a row in use was given away"
            self.rows[new.row] = Row(new, list(new.token_ids), new.num_computed_tokens, list(new.block_table))
        for copy in batch.copied_blocks:
            table = self.rows[copy.row].table
            assert table[copy.index] == copy.source
            table[copy.index] = copy.target
            for slot in range(self.block_size):
                self.slots.pop((copy.target, slot), None)
                if (copy.source, slot) in self.slots:
                    self.slots[copy.target, slot] = self.slots[copy.source, slot]
        for row_index, blocks in batch.appended_blocks:
            self.rows[row_index].table += blocks
            for block in blocks:
                for slot in range(self.block_size):
                    self.slots.pop((block, slot), None)

    def _check_writers(self, batch: Batch) -> None:
        """No slot is written by two rows, and none is written that another running row reads."""
        written: dict[int, int] = {}
        for row_index, count in zip(batch.rows, batch.num_scheduled_tokens, strict=True):
            row = self.rows[row_index]
            assert row.num_computed + count <= len(row.tokens), "a token scheduled before it was sampled"
            assert row.num_computed + count <= len(row.table) * self.block_size, "a token without a block"
            for i in range(row.num_computed // self.block_size, len(row.table)):
                assert row.table[i] not in written, "two rows write to a block"
                written[row.table[i]] = row_index
        for row_index in batch.rows:
            for block in self.rows[row_index].table:
                assert written.get(block, row_index) == row_index, "a row's block is written by another"

    def _compute(self, row: Row, count: int) -> None:
        value = 0
        for i in range(row.num_computed + count):
            value = hash((value, row.tokens[i]))
            slot = (row.table[i // self.block_size], i % self.block_size)
            if i < row.num_computed:
                assert self.slots.get(slot) == value, f"position {i} of the context holds something else"
            else:
                self.slots[slot] = value
        row.num_computed += count
