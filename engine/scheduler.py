"""The scheduler: which tokens of which sequences the next step computes, and what each result means.

Policy, in plain ints. Decodes come first, then prefills that have begun, then new sequences in order of
arrival, within one budget of tokens. Where blocks run out, the sequence that was admitted last gives its
own back and computes again later, from its prompt and what it has generated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from msgspec import Struct

from engine.batch import NO_TOKEN, Batch, NewRow
from engine.blocks import BlockManager
from engine.request import FinishReason, Output, Request, refusal
from engine.sequence import NO_ROW, Sequence


class Limits(Struct, frozen=True, kw_only=True):
    """What bounds a step, a sequence and the cache."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    """Tokens of prompt and output together; the cache holds at least one such sequence."""
    vocab_size: int
    eos_token_ids: Collection[int] = ()


class _Step:
    """A batch in the making."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.preempted = False
        self.new_rows: list[NewRow] = []
        self.appended_blocks: list[tuple[int, list[int]]] = []
        self.rows: list[int] = []
        self.num_scheduled_tokens: list[int] = []
        self.sampled_rows: list[int] = []

    def run(self, seq: Sequence, num_tokens: int) -> None:
        """Puts the next tokens of a sequence into the step; its blocks are there."""
        self.rows.append(seq.row)
        self.num_scheduled_tokens.append(num_tokens)
        self.budget -= num_tokens
        seq.num_computed_tokens += num_tokens
        seq.num_in_flight += 1
        if seq.num_remaining_tokens == 0:
            self.sampled_rows.append(seq.row)
            seq.num_pending += 1


class Scheduler:
    """Owns sequences from `add` to their last output. `schedule` and `update` alternate (overlap depth 0);
    nothing in it breaks if one more `schedule` comes before the `update` of the step in flight."""

    def __init__(self, limits: Limits, blocks: BlockManager) -> None:
        assert blocks.num_blocks * blocks.block_size >= limits.max_model_len, (
            "one sequence must fit the cache"
        )
        self.limits = limits
        self.blocks = blocks
        self.num_preemptions = 0
        self._eos = frozenset(limits.eos_token_ids)
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._rows: list[Sequence | None] = [None] * limits.max_num_seqs
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._retired_rows: list[int] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> Output | None:
        """Takes a request. An output comes back at once if it cannot run, or if it has already ended."""
        reason = refusal(request, self.limits.max_model_len, self.limits.vocab_size)
        if request.request_id in self._sequences:
            reason = "a request with this id is already running"
        if reason is not None:
            return Output(request_id=request.request_id, token_ids=[], error=reason)
        seq = Sequence(request)
        if request.output_token_ids:
            finish_reason, stop_token_id = self._end_of(seq)
            if finish_reason is not None:
                return Output(
                    request_id=request.request_id,
                    token_ids=[],
                    finish_reason=finish_reason,
                    stop_token_id=stop_token_id,
                )
        self._sequences[request.request_id] = seq
        self._waiting.append(seq)
        return None

    def abort(self, request_id: str) -> bool:
        """Drops a request, now or when the step that it is in retires. False if there is no such request."""
        seq = self._sequences.pop(request_id, None)
        if seq is None:
            return False
        seq.ended = True
        if seq.row == NO_ROW:
            self._waiting.remove(seq)
        elif seq.num_in_flight == 0:
            self._free(seq)
        return True

    def schedule(self) -> Batch:
        """The next step; without rows, and then without changes, if nothing can run."""
        step = _Step(self.limits.max_num_batched_tokens)
        prefills: list[Sequence] = []
        for seq in tuple(self._running):
            if seq.num_remaining_tokens == 1:
                self._continue(step, seq)
            else:
                prefills.append(seq)
        for seq in prefills:
            self._continue(step, seq)
        self._admit(step)
        retired: list[int] = []
        if step.rows:  # a batch without rows is never run: what retired waits for one that is
            retired, self._retired_rows = self._retired_rows, []
        return Batch(
            retired_rows=retired,
            new_rows=step.new_rows,
            appended_blocks=step.appended_blocks,
            rows=step.rows,
            num_scheduled_tokens=step.num_scheduled_tokens,
            sampled_rows=step.sampled_rows,
        )

    def update(self, batch: Batch, token_ids: list[int]) -> list[Output]:
        """Retires a step: one sampled token for each of `batch.sampled_rows`, in that order."""
        assert len(token_ids) == len(batch.sampled_rows)
        in_step = [self._sequence_of(row) for row in batch.rows]
        for seq in in_step:
            seq.num_in_flight -= 1
        outputs: list[Output] = []
        for row, token_id in zip(batch.sampled_rows, token_ids, strict=True):
            seq = self._sequence_of(row)
            seq.num_pending -= 1
            if not seq.ended:  # else aborted, or ended by the step before: this token is one too many
                outputs.append(self._accept(seq, token_id))
        for seq in in_step:
            if seq.ended and seq.num_in_flight == 0:
                self._free(seq)
        return outputs

    def check_integrity(self) -> None:
        """Asserts that rows, tables and counts agree. For tests, and for an idle engine."""
        self.blocks.check_integrity(seq.block_table for seq in self._running)
        rows = [seq.row for seq in self._running]
        assert sorted(rows + self._free_rows) == list(range(self.limits.max_num_seqs)), (
            "a row is lost or shared"
        )
        for seq in self._running:
            assert self._rows[seq.row] is seq
            assert seq.num_computed_tokens <= len(seq.block_table) * self.blocks.block_size
            assert 0 <= seq.num_pending <= seq.num_in_flight
        for seq in self._waiting:
            assert seq.row == NO_ROW
            assert not seq.ended
            assert not seq.block_table
            assert seq.num_computed_tokens == 0
        live = {id(seq) for seq in (*self._running, *self._waiting) if not seq.ended}
        assert live == {id(seq) for seq in self._sequences.values()}

    def _continue(self, step: _Step, seq: Sequence) -> None:
        """Gives a running sequence its next tokens, as far as budget and blocks go."""
        if seq.row == NO_ROW or seq.ended or step.budget == 0:
            return
        if self._at_limit(seq, seq.num_tokens):  # its last token is in flight: never overscheduled
            return
        num_tokens = min(seq.num_remaining_tokens, step.budget)
        if self._reserve(step, seq, seq.num_computed_tokens + num_tokens):
            step.run(seq, num_tokens)

    def _reserve(self, step: _Step, seq: Sequence, num_tokens: int) -> bool:
        """Blocks for the first `num_tokens` tokens of a running sequence, by preempting others if need be."""
        missing = self.blocks.blocks_for(num_tokens) - len(seq.block_table)
        if missing <= 0:
            return True
        while missing > self.blocks.num_free:
            victim = next((s for s in reversed(self._running) if s.num_in_flight == 0), None)
            if victim is None:  # what holds the blocks is in flight: wait until it retires
                return False
            self._preempt(victim)
            step.preempted = True
            if victim is seq:
                return False
        self._append_blocks(step, seq, missing)
        return True

    def _append_blocks(self, step: _Step, seq: Sequence, num_blocks: int) -> None:
        blocks = self.blocks.allocate(num_blocks)
        seq.block_table += blocks
        step.appended_blocks.append((seq.row, blocks))

    def _admit(self, step: _Step) -> None:
        """Starts waiting sequences whose whole prompt fits beside what the running ones need soon: the rest
        of their own prompts, or one block more to decode into. Else the newcomer would soon be preempted."""
        if step.preempted or not self._waiting:  # who preempts and admits would only preempt again
            return
        reserve = sum(
            max(1, self.blocks.blocks_for(seq.num_tokens) - len(seq.block_table)) for seq in self._running
        )
        while self._waiting and self._free_rows and step.budget > 0:
            seq = self._waiting[0]
            needed = self.blocks.blocks_for(seq.num_tokens)
            if self._running and needed + reserve > self.blocks.num_free:
                return
            self._waiting.popleft()
            num_tokens = min(seq.num_tokens, step.budget)
            self._start(step, seq)
            self._append_blocks(step, seq, self.blocks.blocks_for(num_tokens))
            step.run(seq, num_tokens)
            reserve += max(1, needed - len(seq.block_table))

    def _start(self, step: _Step, seq: Sequence) -> None:
        seq.row = self._free_rows.pop()
        self._rows[seq.row] = seq
        self._running.append(seq)
        step.new_rows.append(
            NewRow(
                row=seq.row,
                token_ids=seq.token_ids.copy(),
                num_output_tokens=seq.num_output_tokens,
                num_computed_tokens=0,
                params=seq.request.params,
            )
        )

    def _preempt(self, seq: Sequence) -> None:
        self._leave_row(seq)
        seq.restart()
        self._waiting.appendleft(seq)
        self.num_preemptions += 1

    def _free(self, seq: Sequence) -> None:
        """The end of a sequence that nothing in flight uses."""
        self._leave_row(seq)
        seq.restart()

    def _leave_row(self, seq: Sequence) -> None:
        assert seq.num_in_flight == 0, "left a row that a step in flight uses"
        self._running.remove(seq)
        self.blocks.release(seq.block_table)
        self._rows[seq.row] = None
        self._free_rows.append(seq.row)
        self._retired_rows.append(seq.row)

    def _sequence_of(self, row: int) -> Sequence:
        seq = self._rows[row]
        assert seq is not None, "a step ran a row that nothing owns"
        return seq

    def _accept(self, seq: Sequence, token_id: int) -> Output:
        """One known token more."""
        request_id = seq.request.request_id
        if token_id == NO_TOKEN:
            self._end(seq)
            return Output(request_id=request_id, token_ids=[], error="the model's logits are not finite")
        seq.token_ids.append(token_id)
        finish_reason, stop_token_id = self._end_of(seq)
        if finish_reason is not None:
            self._end(seq)
        return Output(
            request_id=request_id,
            token_ids=[token_id],
            finish_reason=finish_reason,
            stop_token_id=stop_token_id,
        )

    def _end(self, seq: Sequence) -> None:
        seq.ended = True
        self._sequences.pop(seq.request.request_id, None)

    def _end_of(self, seq: Sequence) -> tuple[FinishReason | None, int | None]:
        """Why a sequence ends with its last known token, if it does, and the token that ended it."""
        params = seq.request.params
        last = seq.token_ids[-1]
        if last in params.stop_token_ids or (last in self._eos and not params.ignore_eos):
            return "stop", last
        return ("length", None) if self._at_limit(seq, len(seq.token_ids)) else (None, None)

    def _at_limit(self, seq: Sequence, num_tokens: int) -> bool:
        """Whether a sequence is as long as it may get once it has `num_tokens` tokens."""
        num_output_tokens = num_tokens - seq.num_prompt_tokens
        return num_output_tokens >= seq.request.params.max_tokens or num_tokens >= self.limits.max_model_len
