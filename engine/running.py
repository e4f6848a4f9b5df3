"""Running sequences: their rows, their blocks, and who gives way where blocks run out."""

from __future__ import annotations

from engine.admission import Admission, Start
from engine.batch import CopiedBlock, NewRow
from engine.blocks import BlockManager
from engine.sequence import NO_ROW, NO_STEP, Sequence
from engine.step import StepBuilder
from engine.waiting import WaitingQueue


class RunningSet:
    """Sequences in rows. Knows how to start, extend, preempt and free them; not when."""

    def __init__(
        self, num_rows: int, blocks: BlockManager, admission: Admission, waiting: WaitingQueue
    ) -> None:
        self.sequences: dict[Sequence, None] = {}
        """In order of admission."""
        self.rows: list[Sequence | None] = [None] * num_rows
        self.free_rows = list(range(num_rows - 1, -1, -1))
        self.retired_rows: list[int] = []
        """Given up since the runner last heard."""
        self.yielding: Sequence | None = None
        """To be preempted, but in flight: it pauses until its step retires."""
        self.num_preemptions = 0
        self.num_unsampled = 0
        """Sequences here of the kinds that sample nothing."""
        self.has_changed = True
        """Whether something happened that may let a waiting sequence start; the scheduler resets it."""
        self.last_shared_prompt_step = NO_STEP
        """When the last of a prompt was scheduled that siblings may share: from the next step on."""
        self._blocks = blocks
        self._admission = admission
        self._waiting = waiting
        self._ended: list[Sequence] = []
        """Those that leave when their steps in flight retire."""
        self._num_starts = 0

    def start(self, step: StepBuilder, seq: Sequence, start: Start) -> None:
        """Puts a sequence that has been waiting into a row and into the step, as far as the budget goes.
        The caller has seen that rows and blocks suffice."""
        self._num_starts += 1
        seq.serial = self._num_starts
        seq.row = self.free_rows.pop()
        self.rows[seq.row] = seq
        self.sequences[seq] = None
        self.num_unsampled += seq.request.kind != "generate"
        self._blocks.share(start.blocks)
        seq.block_table = start.blocks
        seq.num_computed_tokens = seq.num_retired_tokens = start.num_computed_tokens
        if self._blocks.prefix_cache:
            seq.num_kept_blocks = 0 if start.is_sibling else len(start.blocks)
            seq.keeps_at = (seq.num_kept_blocks + 1) * self._blocks.block_size
            self._admission.prefills(seq)
        if seq.family.leader is None and seq.shares_prompt:
            seq.family.leader = seq
        step.new_rows.append(
            NewRow(
                row=seq.row,
                token_ids=seq.token_ids.copy(),
                num_prompt_tokens=seq.num_prompt_tokens,
                num_computed_tokens=seq.num_computed_tokens,
                block_table=start.blocks.copy(),
                params=seq.request.params,
                sample=seq.index,
                kind=seq.request.kind,
            )
        )
        num_tokens = min(seq.num_tokens - seq.num_computed_tokens, step.budget)
        self._give_blocks(step, seq, seq.num_computed_tokens + num_tokens)
        self._run(step, seq, num_tokens)

    def proceed(self, step: StepBuilder, seq: Sequence) -> None:
        """Gives a running sequence its next tokens, as far as budget and blocks go."""
        if seq.row == NO_ROW or seq.ended or seq is self.yielding or step.budget == 0:
            return
        num_remaining = seq.num_tokens - seq.num_computed_tokens
        if num_remaining == 0 or seq.num_tokens >= seq.max_num_tokens:
            return  # its last token is in flight: never overscheduled
        num_tokens = min(num_remaining, step.budget)
        if self._reserve(step, seq, seq.num_computed_tokens + num_tokens):
            self._run(step, seq, num_tokens)

    def keep_blocks(self, seq: Sequence) -> None:
        """Blocks of a sequence have become full by a step that retired: they can be found from now on."""
        if seq.ended:  # its last tokens may be ones too many
            return
        size = self._blocks.block_size
        num_full = seq.num_retired_tokens // size
        if len(seq.block_hashes) < num_full:
            self._blocks.extend_hashes(seq.block_hashes, seq.token_ids)
        for i in range(seq.num_kept_blocks, num_full):
            block_hash = seq.block_hashes[i]
            self._blocks.keep(seq.block_table[i], block_hash)
            if self._admission.kept(block_hash):
                self.has_changed = True
        seq.num_kept_blocks = num_full
        seq.keeps_at = (num_full + 1) * size

    def end(self, seq: Sequence) -> None:
        """A sequence is finished or aborted: `free_ended` lets it go when nothing in flight uses it."""
        seq.ended = True
        seq.decodes_until = 0
        seq.family.forget(seq)
        if seq.row == NO_ROW:
            self._waiting.remove(seq)
        else:
            self._ended.append(seq)
        self.has_changed = True

    def free_ended(self) -> None:
        """Frees what has ended and is in no step in flight."""
        if not self._ended:
            return
        for seq in self._ended:
            if seq.num_in_flight == 0:
                self._leave(seq)
        self._ended = [seq for seq in self._ended if seq.row != NO_ROW]

    def num_blocks_soon(self) -> int:
        """Free blocks that the running sequences need soon: for the rest of their own known tokens, or one
        more each to decode into."""
        blocks_for = self._blocks.blocks_for
        return sum(
            max(1, blocks_for(seq.num_tokens) - len(seq.block_table))
            for seq in self.sequences
            if not seq.ended
        )

    def check_integrity(self) -> None:
        """Asserts that rows, tables and counts agree, and that nobody writes to a shared block."""
        size = self._blocks.block_size
        self._blocks.check_integrity(seq.block_table for seq in self.sequences)
        rows = [seq.row for seq in self.sequences]
        assert sorted(rows + self.free_rows) == list(range(len(self.rows))), "a row is lost or shared"
        for seq in self.sequences:
            table = seq.block_table
            assert self.rows[seq.row] is seq
            assert seq.ended == (seq in self._ended)
            assert seq.num_in_flight > 0 or not seq.ended, "an ended sequence stays"
            assert len(table) == self._blocks.blocks_for(seq.num_computed_tokens)
            assert seq.num_retired_tokens <= seq.num_computed_tokens <= seq.num_tokens
            assert (seq.num_retired_tokens < seq.num_computed_tokens) == (seq.num_in_flight > 0)
            assert 0 <= seq.num_tokens - len(seq.token_ids) <= seq.num_in_flight or seq.ended
            index = seq.num_computed_tokens // size
            assert index == len(table) or not self._blocks.is_shared(table[index]), "shared, but written to"
            assert seq.decodes_until <= len(table) * size
            assert seq.num_kept_blocks * size <= seq.num_retired_tokens

    def _run(self, step: StepBuilder, seq: Sequence, num_tokens: int) -> None:
        had_prompt = seq.prompt_step != NO_STEP
        step.run(seq, num_tokens)
        if not had_prompt and seq.prompt_step != NO_STEP and len(seq.family.live) > 1:
            self.last_shared_prompt_step = step.number
            self.has_changed = True
        if seq.prompt_step != NO_STEP and seq.num_tokens - seq.num_computed_tokens == 1:
            seq.decodes_until = min(len(seq.block_table) * self._blocks.block_size, seq.max_num_tokens - 1)

    def _num_missing(self, seq: Sequence, num_tokens: int) -> int:
        """Free blocks that the first `num_tokens` tokens take beside those in the table."""
        index = seq.num_computed_tokens // self._blocks.block_size
        is_copied = index < len(seq.block_table) and self._blocks.is_shared(seq.block_table[index])
        return max(0, self._blocks.blocks_for(num_tokens) - len(seq.block_table)) + is_copied

    def _reserve(self, step: StepBuilder, seq: Sequence, num_tokens: int) -> bool:
        """Blocks for the first `num_tokens` tokens of a running sequence, by preempting others if need be."""
        while self._num_missing(seq, num_tokens) > self._blocks.num_free:
            if self._ended:  # their blocks are free when the step in flight retires
                return False
            victim = self._victim()
            if victim.num_in_flight:  # it pauses, so that it can be preempted in the next step
                victim.decodes_until = 0
                self.yielding = victim
                return False
            self._preempt(victim)
            step.preempted = True
            if victim is seq:
                return False
        self._give_blocks(step, seq, num_tokens)
        return True

    def _give_blocks(self, step: StepBuilder, seq: Sequence, num_tokens: int) -> None:
        """What the tokens up to `num_tokens` are written to: fresh blocks, and before them a copy of a block
        that other tables hold too. Only one can be both shared and written to, as a table reaches no further
        than what is computed."""
        table = seq.block_table
        index = seq.num_computed_tokens // self._blocks.block_size
        if index < len(table) and self._blocks.is_shared(table[index]):
            source = table[index]
            (target,) = self._blocks.allocate(1)
            self._blocks.release([source])
            table[index] = target
            step.copied_blocks.append(CopiedBlock(row=seq.row, index=index, source=source, target=target))
        num_missing = self._blocks.blocks_for(num_tokens) - len(table)
        if num_missing > 0:
            blocks = self._blocks.allocate(num_missing)
            table += blocks
            step.appended_blocks.append((seq.row, blocks))

    def _victim(self) -> Sequence:
        """The sequence that costs least to compute again; of several, the one admitted last.

        Never the one that is furthest, unless it is alone: it makes progress in every step that it is in,
        so that whatever the others take from each other, it ends, and then the next one.
        """
        live = [seq for seq in self.sequences if not seq.ended]
        if len(live) > 1:
            live.remove(max(live, key=lambda seq: (seq.num_computed_tokens, -seq.serial)))
        return min(live, key=lambda seq: (self._cost(seq), -seq.serial))

    def _cost(self, seq: Sequence) -> int:
        """Tokens to compute again after a preemption: not those at the head that other tables hold too."""
        num_shared = 0
        for block in seq.block_table:
            if not self._blocks.is_shared(block):
                break
            num_shared += self._blocks.block_size
        return max(0, seq.num_computed_tokens - num_shared)

    def _preempt(self, seq: Sequence) -> None:
        self._leave(seq)
        if seq.family.leader is seq:
            seq.family.elect()
        self._admission.prepare(seq)
        self._waiting.append_first(seq)
        self.num_preemptions += 1

    def _leave(self, seq: Sequence) -> None:
        """Gives up row and blocks."""
        assert seq.num_in_flight == 0, "left a row that a step in flight uses"
        self._admission.leaves(seq)
        self._blocks.release(seq.block_table)
        del self.sequences[seq]
        self.rows[seq.row] = None
        self.free_rows.append(seq.row)
        self.retired_rows.append(seq.row)
        self.num_unsampled -= seq.request.kind != "generate"
        seq.restart()
        self.has_changed = True
